//! A model file on its way through everything but execution: read, cleaned up, its chain found, summed up, rewritten
//! and written.

#![no_main]

use bytes::Bytes;
use libfuzzer_sys::fuzz_target;
use snlp::onnx::{Model, WriteOptions};
use snlp::passes::plan::Plan;
use snlp::source::Source;
use snlp::structure::Structure;
use snlp::summary::{ChainSummary, Figures};

fuzz_target!(|data: &[u8]| {
    let folder = snlp_fuzz::folder();
    let Ok(model) = Model::decode(Bytes::copy_from_slice(data), folder) else { return };
    let Ok(source) = Source::of(&folder.join("model.onnx"), model) else { return };
    let _ = (source.notices(), source.unsupported(), source.parameters(), source.bytes());
    let _ = snlp::feeds::index_bounds(&source.graph);
    let _ = Figures::of(&source.graph, None);
    let Ok(chain) = &source.chain else {
        let _ = source.model.encode(&WriteOptions::default());
        return;
    };
    let _ = ChainSummary::of(&source.graph, chain);
    for plan in ["2xF1[k=2]", "1xF2"] {
        let Ok(placed) = plan.parse::<Plan>().map(|p| source.place(&p)) else { continue };
        let Ok(placed) = placed else { continue };
        let Ok(made) = source.rewrite(&placed) else { continue };
        let _ = Structure::of(&source.graph, chain, Some((&placed, &made)));
        let _ = Figures::of(&made.graph, Some(placed.sequential_depth()));
        let written = Model { graph: made.graph, info: source.model.info.clone() };
        for inline in [false, true] {
            if let Ok(bytes) = written.encode(&WriteOptions { inline, external_data: false }) {
                // Below an opset that has its operators, what is written may be refused; it must not be half a model.
                let _ = Model::decode(bytes, folder);
            }
        }
    }
});
