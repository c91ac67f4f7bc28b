//! `snlp devices`: what there is to compute on.

use clap::Args;
use serde_json::{Value, json};
use snlp::error::Error;
use snlp::runtime::{DeviceInfo, DeviceKind, adapters};
use snlp::text::escaped;

use super::Common;
use super::backend::{Auto, auto};
use super::ui::{self, BOLD, Table, Ui, bytes};

/// List the adapters with their backend, limits and features, and say which one auto takes
#[derive(Args)]
#[command(after_help = "Example:\n  snlp devices --json")]
pub struct Devices {
    /// Print one JSON document
    #[arg(long)]
    json: bool,
}

fn kind(info: &DeviceInfo) -> &'static str {
    match info.kind {
        DeviceKind::Discrete => "discrete",
        DeviceKind::Integrated => "integrated",
        DeviceKind::Virtual => "virtual",
        DeviceKind::Software => "software",
        DeviceKind::Unknown => "unknown",
    }
}

fn document(found: &[DeviceInfo], choice: Auto) -> Value {
    let devices: Vec<Value> = found
        .iter()
        .enumerate()
        .map(|(i, d)| {
            let l = &d.limits;
            json!({
                "name": d.name,
                "backend": d.backend,
                "kind": kind(d),
                "driver": d.driver,
                "features": d.features,
                "limits": {
                    "max_storage_binding": l.max_storage_binding,
                    "max_buffer": l.max_buffer,
                    "max_storage_buffers": l.max_storage_buffers,
                    "max_workgroups_per_dimension": l.max_grid,
                    "max_invocations_per_workgroup": l.max_invocations,
                    "max_workgroup_memory": l.max_workgroup_memory,
                    "min_offset_alignment": l.min_offset_alignment,
                },
                "auto": choice == Auto::Gpu && i == 0,
            })
        })
        .collect();
    let auto = match choice {
        Auto::Gpu => json!("gpu"),
        Auto::Cpu => json!("cpu"),
        Auto::Nothing => Value::Null,
    };
    json!({ "devices": devices, "cpu": { "available": cfg!(feature = "cpu") }, "auto": auto })
}

impl Devices {
    /// Runs the command.
    pub fn run(self, common: &Common, ui: &Ui) -> Result<(), Error> {
        let all = adapters();
        let mut found = all.clone();
        if let Some(text) = common.adapter.as_ref().map(|t| t.to_lowercase()) {
            found.retain(|d| {
                [&d.name, &d.driver, &d.backend].iter().any(|s| s.to_lowercase().contains(&text))
            });
        }
        // An adapter that is asked for is taken, be it software.
        let choice = match common.adapter {
            Some(_) if found.is_empty() => Auto::Nothing,
            Some(_) => Auto::Gpu,
            None => auto(&found),
        };
        if self.json {
            return ui::print_json(&document(&found, choice));
        }
        let mut table = Table::new(&["", "adapter", "backend", "kind", "driver", "binding", "features"]);
        for (i, d) in found.iter().enumerate() {
            let mark = if choice == Auto::Gpu && i == 0 { "*" } else { "" };
            table.row([
                mark.into(),
                d.name.clone(),
                d.backend.clone(),
                kind(d).into(),
                d.driver.clone(),
                bytes(d.limits.max_storage_binding),
                d.features.join(" "),
            ]);
        }
        if cfg!(feature = "cpu") {
            let mark = if choice == Auto::Cpu { "*" } else { "" };
            table.row([mark, "CPU", "tract"]);
        }
        let mut text = table.render(0);
        text += &match (choice, &common.adapter, &all[..]) {
            (_, _, []) => "No GPU adapter was found.\n".to_string(),
            (Auto::Nothing, Some(wanted), all) => {
                let names: Vec<String> = all.iter().map(|d| format!("{} ({})", d.name, d.backend)).collect();
                format!("No adapter matches '{}'; there are: {}\n", escaped(wanted), names.join(", "))
            }
            _ => String::new(),
        };
        text += &match (choice, cfg!(feature = "cpu")) {
            (Auto::Nothing, true) => String::new(),
            (Auto::Nothing, false) => {
                "Nothing can run: install a Vulkan driver, or build with the feature 'cpu'.\n".into()
            }
            _ => format!("{BOLD}*{BOLD:#} is what --backend auto takes.\n"),
        };
        if ui.verbose() {
            for d in &found {
                text += &format!("\n{}: {:#?}\n", d.name, d.limits);
            }
        }
        ui::print(&text)
    }
}
