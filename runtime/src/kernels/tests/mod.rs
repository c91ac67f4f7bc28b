//! Every family against plain references, on the adapter at hand.

mod attention;
mod attention_step;
mod dynamic_quantize;
mod elementwise;
mod heads;
mod indexing;
mod lines;
mod matmul;
mod quantized;
mod sinkhorn;
mod topk;
