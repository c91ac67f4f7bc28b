//! Unique names.

use std::collections::HashMap;

/// Names given out so far.
#[derive(Default)]
pub(super) struct Names {
    used: HashMap<String, u32>,
}

impl Names {
    /// Keeps `name` for its owner; whether it was free.
    pub(super) fn reserve(&mut self, name: &str) -> bool {
        self.used.insert(name.into(), 0).is_none()
    }

    /// `base`, or `base` with a number where it is taken.
    pub(super) fn fresh(&mut self, base: &str) -> String {
        if !self.used.contains_key(base) {
            self.used.insert(base.into(), 0);
            return base.into();
        }
        loop {
            let count = self.used.entry(base.into()).or_insert(0);
            *count += 1;
            let name = format!("{base}_{count}");
            if !self.used.contains_key(&name) {
                self.used.insert(name.clone(), 0);
                return name;
            }
        }
    }
}
