//! Times of single dispatches, by timestamps around each.

use std::time::Duration;

use crate::error::RuntimeError;
use crate::executor::Prepared;
use crate::schedule::kernel_name;

/// Timestamps that fit one query set.
const MAX_QUERIES: usize = 4096;

/// What one dispatch cost.
#[derive(Clone, PartialEq, Debug)]
pub struct StepTime {
    /// The node it computes.
    pub node: String,
    /// Kernel.
    pub kernel: String,
    /// Number of its level.
    pub level: usize,
    /// Time on the device.
    pub time: Duration,
    /// Bytes it moves at least.
    pub bytes: u64,
    /// Floating-point operations.
    pub flops: u64,
}

/// Runs each dispatch in a pass of its own and reads the timestamps.
pub(crate) fn profile(prepared: &Prepared) -> Result<Vec<StepTime>, RuntimeError> {
    let gpu = prepared.gpu();
    if !gpu.has_timestamps() {
        return Err(RuntimeError::Gpu {
            during: "profiling".into(),
            message: "the device has no timestamps".into(),
        });
    }
    let mut ticks: Vec<u64> = vec![];
    for chunk in prepared.dispatches().chunks(MAX_QUERIES / 2) {
        let count = chunk.len() as u32 * 2;
        let bytes = u64::from(count) * 8;
        let usage = wgpu::BufferUsages::QUERY_RESOLVE | wgpu::BufferUsages::COPY_SRC;
        let resolved = gpu.buffer("timestamps", bytes, usage)?;
        let usage = wgpu::BufferUsages::COPY_DST | wgpu::BufferUsages::MAP_READ;
        let staging = gpu.buffer("timestamps", bytes, usage)?;
        gpu.guarded("profiling", || {
            let queries = gpu.device().create_query_set(&wgpu::QuerySetDescriptor {
                label: Some("timestamps"),
                ty: wgpu::QueryType::Timestamp,
                count,
            });
            let mut encoder = gpu.device().create_command_encoder(&Default::default());
            for (i, dispatch) in chunk.iter().enumerate() {
                let at = i as u32 * 2;
                let mut pass = encoder.begin_compute_pass(&wgpu::ComputePassDescriptor {
                    label: None,
                    timestamp_writes: Some(wgpu::ComputePassTimestampWrites {
                        query_set: &queries,
                        beginning_of_pass_write_index: Some(at),
                        end_of_pass_write_index: Some(at + 1),
                    }),
                });
                dispatch.encode(&mut pass);
            }
            encoder.resolve_query_set(&queries, 0..count, &resolved, 0);
            encoder.copy_buffer_to_buffer(&resolved, 0, &staging, 0, bytes);
            gpu.queue().submit([encoder.finish()]);
        })?;
        ticks.extend(bytemuck::pod_collect_to_vec::<u8, u64>(&gpu.read(&staging, bytes)?));
    }
    let period = f64::from(gpu.queue().get_timestamp_period());
    let level_of = |i: usize| prepared.plan.levels.iter().position(|l| l.contains(&i)).unwrap_or(0);
    let steps = prepared.plan.steps.iter().enumerate().zip(ticks.chunks(2));
    Ok(steps
        .map(|((i, step), t)| {
            let span = t.last().copied().unwrap_or(0).saturating_sub(t.first().copied().unwrap_or(0));
            StepTime {
                node: step.node.clone(),
                kernel: kernel_name(&step.launch),
                level: level_of(i),
                time: Duration::from_nanos((span as f64 * period) as u64),
                bytes: step.launch.bytes,
                flops: step.launch.flops,
            }
        })
        .collect())
}
