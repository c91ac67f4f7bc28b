//! A petgraph view of the dataflow, for analyses (reachability, dominators).

use petgraph::graph::{DiGraph, NodeIndex};

use super::graph::{Graph, NodeId};

/// The nodes of a graph with an edge from each node to the nodes that read its results.
pub struct DataflowView {
    /// One vertex per node.
    pub graph: DiGraph<NodeId, ()>,
    index: Vec<Option<NodeIndex>>,
}

impl DataflowView {
    /// The view of `graph` as it is now.
    pub fn new(graph: &Graph) -> Self {
        let mut view = DiGraph::new();
        let mut index = Vec::new();
        for (id, _) in graph.nodes() {
            index.resize(id.index() + 1, None);
            index[id.index()] = Some(view.add_node(id));
        }
        let mut out = DataflowView { graph: view, index };
        for (id, node) in graph.nodes() {
            for producer in node.operands().filter_map(|v| graph.producer(v)) {
                if let (Some(from), Some(to)) = (out.vertex(producer), out.vertex(id)) {
                    out.graph.update_edge(from, to, ());
                }
            }
        }
        out
    }

    /// The vertex of a node.
    pub fn vertex(&self, id: NodeId) -> Option<NodeIndex> {
        self.index.get(id.index()).copied().flatten()
    }
}
