//! Edits that many passes share.

use super::graph::{Graph, NodeId, ValueId};

impl Graph {
    /// Gives a replacement the name of what it replaces, when it has none of its own.
    pub fn adopt_name(&mut self, old: ValueId, new: ValueId) {
        if let (Some(name), None) = (self.value(old).name.clone(), &self.value(new).name) {
            self.set_name(new, &name);
        }
    }

    /// Gives a value of this graph the name that `v` has in `other`.
    pub fn adopt_name_from(&mut self, other: &Graph, v: ValueId, new: ValueId) {
        if let Some(name) = &other.value(v).name {
            self.set_name(new, name);
        }
    }

    /// Removes every node whose results neither an output nor a living node reads; returns how many.
    /// Graph inputs stay.
    pub fn remove_dead(&mut self) -> usize {
        let mut live = vec![false; self.value_count()];
        let mut stack: Vec<_> = self.outputs.iter().map(|o| o.value).collect();
        while let Some(v) = stack.pop() {
            if std::mem::replace(&mut live[v.index()], true) {
                continue;
            }
            if let Some(node) = self.producing(v) {
                stack.extend(node.operands());
            }
        }
        let dead: Vec<NodeId> = self
            .nodes()
            .filter(|(_, n)| !n.outputs.iter().any(|v| live[v.index()]))
            .map(|(id, _)| id)
            .collect();
        for id in &dead {
            self.remove(*id);
        }
        dead.len()
    }
}
