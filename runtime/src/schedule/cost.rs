//! What a forward costs on a device that is not there: from a schedule and a profile of the device.

use super::Plan;

/// A device in three numbers.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct Profile {
    /// Seconds that every dispatch takes at least, its barrier included.
    pub dispatch: f64,
    /// Bytes per second between memory and kernels.
    pub bandwidth: f64,
    /// Floating-point operations per second.
    pub flops: f64,
}

impl Default for Profile {
    /// What kernels reach on a mid-range GPU: 5 µs, 300 GB/s, 8 TFLOP/s.
    fn default() -> Self {
        Profile { dispatch: 5e-6, bandwidth: 300e9, flops: 8e12 }
    }
}

impl Plan {
    /// Seconds of one forward: every dispatch takes its launch, then the longer of its traffic and its
    /// arithmetic. Occupancy is left out: a kernel that is too small to fill the device counts as full.
    pub fn cost(&self, profile: &Profile) -> f64 {
        let work = |launch: &crate::kernels::Launch| {
            (launch.bytes as f64 / profile.bandwidth).max(launch.flops as f64 / profile.flops)
        };
        self.steps.iter().map(|step| profile.dispatch + work(&step.launch)).sum()
    }
}
