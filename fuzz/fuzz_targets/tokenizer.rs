//! tokenizer.json, and what it makes of a text.

#![no_main]

use libfuzzer_sys::fuzz_target;
use snlp::language::tokenizer::Tokenizer;

const TEXT: &str = "ROMEO: It's 3 o'clock,\n\u{e9}t\u{e9} \u{1f600} <|endoftext|>  end";

fuzz_target!(init: snlp_fuzz::let_panics_pass(), |data: &[u8]| {
    let path = snlp_fuzz::file("tokenizer.json", data);
    snlp_fuzz::watched(|| {
        let Ok(tokenizer) = Tokenizer::read(&path) else { return };
        let _ = (tokenizer.vocabulary(), tokenizer.id("<|endoftext|>"));
        let Ok(ids) = tokenizer.encode(TEXT) else { return };
        let _ = tokenizer.decode(&ids);
        let mut stream = tokenizer.stream(&ids[..ids.len() / 2]);
        for id in ids.iter().take(64) {
            if stream.push(*id).is_err() {
                return;
            }
        }
        let _ = stream.finish();
    });
});
