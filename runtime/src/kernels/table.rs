//! The table of kernel sources.
//!
//! A source is complete WGSL: a file, with one that it shares with others behind it. The only text that ever changes is the right-hand side of its `alias`
//! declarations that choose element types; everything else is an `override` or a uniform.

use std::borrow::Cow;

use super::PipelineKey;

/// One WGSL source.
#[derive(Debug)]
pub struct Source {
    /// Its name, as in [`PipelineKey::source`].
    pub name: &'static str,
    /// The file, and what it shares.
    pub text: &'static str,
    /// The `alias` substitutions in use besides none.
    pub variants: &'static [&'static [(&'static str, &'static str)]],
}

macro_rules! sources {
    ($($name:literal $(with $shared:literal)? $(: $variants:expr)?),* $(,)?) => {
        &[$(Source {
            name: $name,
            text: concat!(
                include_str!(concat!($name, ".wgsl"))
                $(, "\n", include_str!(concat!($shared, ".wgsl")))?
            ),
            variants: sources!(@ $($variants)?),
        }),*]
    };
    (@) => { &[] };
    (@ $variants:expr) => { $variants };
}

/// Every kernel source, in alphabetical order.
pub const SOURCES: &[Source] = sources![
    "argmax",
    "attention" with "scores",
    "attention_step" with "scores",
    "conv",
    "correction",
    "dynamic_quantize",
    "elementwise",
    "gather",
    "heads",
    "matmul" with "products": &[&super::matmul::COOPERATIVE_8],
    "matmul_integer" with "products",
    "norm",
    "reduce",
    "scan",
    "scatter",
    "sinkhorn",
    "softmax",
    "topk",
];

/// The WGSL of a pipeline; `None` when the table has no such source or the source no such alias.
pub fn shader_text(key: &PipelineKey) -> Option<Cow<'static, str>> {
    let source = SOURCES.iter().find(|s| s.name == key.source)?;
    substitute(source.text, &key.types)
}

fn substitute(text: &'static str, types: &[(&'static str, &'static str)]) -> Option<Cow<'static, str>> {
    let mut text = Cow::Borrowed(text);
    for (name, element) in types {
        let declaration = format!("alias {name} = ");
        let start = text.find(&declaration)? + declaration.len();
        let end = start + text[start..].find(';')?;
        text.to_mut().replace_range(start..end, element);
    }
    Some(text)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn every_source_validates_in_every_variant() {
        for source in SOURCES {
            for variant in std::iter::once(&[][..]).chain(source.variants.iter().copied()) {
                let text = substitute(source.text, variant).expect("the variant's aliases exist");
                let module = naga::front::wgsl::parse_str(&text).unwrap_or_else(|e| {
                    panic!("{}.wgsl {variant:?}\n{}", source.name, e.emit_to_string(&text))
                });
                // What each entry point may ask for is checked where they are specialised.
                let flags = naga::valid::ValidationFlags::all();
                let mut validator = naga::valid::Validator::new(flags, naga::valid::Capabilities::all());
                validator.validate(&module).unwrap_or_else(|e| {
                    panic!("{}.wgsl {variant:?}\n{}", source.name, e.emit_to_string(&text))
                });
                assert!(!module.entry_points.is_empty(), "{}.wgsl has no entry point", source.name);
            }
        }
    }

    #[test]
    fn the_table_and_the_folder_agree() {
        let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("src/kernels");
        let files: BTreeSet<String> = std::fs::read_dir(folder)
            .expect("the folder of kernels")
            .filter_map(|entry| {
                let name = entry.ok()?.file_name().into_string().ok()?;
                Some(name.strip_suffix(".wgsl")?.to_string())
            })
            .collect();
        let shared = ["products", "scores"];
        let table: BTreeSet<String> =
            SOURCES.iter().map(|s| s.name).chain(shared).map(str::to_string).collect();
        assert!(!files.is_empty());
        assert_eq!(files, table);
    }
}
