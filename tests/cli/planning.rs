//! `eval` on text, its page, plans in files, and the search for a plan.

use serde_json::Value;
use snlp::language::metrics::window_nll;
use snlp::language::tokenizer::Tokenizer;
use snlp::npz::{read_npz, write_npz};
use snlp::passes::ir::Tensor;

use crate::support::{Folder, backends, fixture, snlp};

/// The bundled model, its windows, its text and its tokenizer.
fn nano() -> [String; 4] {
    ["model.onnx", "val_windows.npz", "val.txt", "tokenizer.json"].map(|f| fixture(&format!("nano/{f}")))
}

fn number(value: &Value) -> f64 {
    value.as_f64().unwrap_or_else(|| panic!("{value} is no number"))
}

#[test]
fn text_is_evaluated_as_its_windows_are() {
    let [model, tokens, text, tokenizer] = nano();
    let Some(backend) = backends().first().copied() else { return };
    let common = ["--plan", "6xF1", "--json", "--backend", backend];
    let of_text = ["eval", &model, "--text", &text, "--tokenizer", &tokenizer, "--context", "256"];
    let of_text = snlp(&[&of_text[..], &common].concat()).code(0).json();
    let of_windows = snlp(&[&["eval", &model, "--tokens", &tokens][..], &common].concat()).code(0).json();
    assert_eq!(of_text["sequential"]["tokens"], 4096);
    for key in ["ppl", "nll"] {
        assert_eq!(of_text["sequential"][key], of_windows["sequential"][key]);
    }
    for key in ["plan", "ppl", "kl", "top1", "cosine"] {
        assert_eq!(of_text["plans"][0][key], of_windows["plans"][0][key]);
    }
    assert!((number(&of_text["sequential"]["ppl"]) - 11.257_782).abs() < 1e-4);
}

#[test]
fn sliding_windows_score_each_token_once_with_context() {
    let [model, _, text, tokenizer] = nano();
    let Some(backend) = backends().first().copied() else { return };
    let folder = Folder::new();
    let text: String = std::fs::read_to_string(text).expect("there").chars().take(300).collect();
    std::fs::write(folder.path("short.txt"), &text).expect("written");
    let short = folder.text("short.txt");
    let args = ["eval", &model, "--text", &short, "--tokenizer", &tokenizer, "--backend", backend, "--json"];
    let found = snlp(&[&args[..], &["--context", "48", "--stride", "20"]].concat()).code(0).json();
    // By hand: the logits of each window, and of those the targets that are new.
    let ids: Vec<i64> = Tokenizer::read(tokenizer.as_ref())
        .and_then(|t| t.encode(&text))
        .expect("tokens")
        .into_iter()
        .map(i64::from)
        .collect();
    let (mut nll, mut scored, mut start) = (0.0, 0, 0);
    loop {
        let inputs = Tensor::from_vec(vec![1, 48], ids[start..start + 48].to_vec()).expect("fits");
        let file = std::fs::File::create(folder.path("in.npz")).expect("created");
        write_npz(file, [("input_ids", &inputs)]).expect("written");
        let (given, made) = (folder.text("in.npz"), folder.text("out.npz"));
        snlp(&["run", &model, "--inputs", &given, "--outputs", &made, "--backend", backend]).code(0);
        let logits = read_npz(&folder.path("out.npz")).expect("read")[0].1.to_f32();
        let new = scored - start;
        let targets = &ids[start + 1 + new..=start + 48];
        nll += window_nll(&logits[new * 512..], 512, targets).expect("fits") * targets.len() as f64;
        scored = start + 48;
        if scored == ids.len() - 1 {
            break;
        }
        start = (start + 20).min(ids.len() - 1 - 48);
    }
    assert_eq!(found["sequential"]["tokens"], ids.len() - 1);
    let expected = nll / (ids.len() - 1) as f64;
    assert!((number(&found["sequential"]["nll"]) - expected).abs() < 1e-5, "{found} instead of {expected}");
    // More context predicts better.
    let apart = snlp(&[&args[..], &["--context", "48"]].concat()).code(0).json();
    assert!(number(&apart["sequential"]["nll"]) > expected);
}

#[test]
fn text_that_cannot_be_evaluated_is_refused() {
    let [model, tokens, text, tokenizer] = nano();
    let folder = Folder::new();
    std::fs::write(folder.path("latin1.txt"), b"caf\xe9").expect("written");
    std::fs::write(folder.path("one.txt"), "a").expect("written");
    let eval = |text: &str, tokenizer: &str, more: &[&str]| {
        snlp(&[&["eval", &model, "--text", text, "--tokenizer", tokenizer][..], more].concat())
    };
    eval(&folder.text("latin1.txt"), &tokenizer, &[]).code(3).says(&["latin1.txt", "UTF-8", "help:"]);
    eval(&folder.text("one.txt"), &tokenizer, &[]).code(3).says(&["one.txt", "too few", "help:"]);
    eval("no/such.txt", &tokenizer, &[]).code(5).says(&["no/such.txt"]);
    eval(&text, &text, &[]).code(3).says(&["val.txt", "not a tokenizer", "help:"]);
    eval(&text, &tokenizer, &["--context", "100000", "--batch", "1"]).code(3).says(&["help:"]);
    eval(&text, &tokenizer, &["--context", "8", "--stride", "9"]).code(2).says(&["--stride 9", "help:"]);
    // A vocabulary that the model does not have.
    let other = fixture("gpt2-tiny/model.onnx");
    let args = ["eval", &other, "--text", &text, "--tokenizer", &tokenizer, "--context", "16"];
    snlp(&args).code(3).says(&["0..96", "tokenizer", "help:"]);
    snlp(&["eval", &model, "--text", &text]).code(2);
    snlp(&["eval", &model, "--tokens", &tokens, "--context", "16"]).code(2);
}

/// Whether tags are closed in order; the page has no tags that need no end but these.
fn is_well_formed(html: &str) -> bool {
    let mut open: Vec<&str> = vec![];
    let body = html.replace(['\n'], " ");
    let start = body.find("<html").expect("a document");
    // What scripts compare is no markup.
    let (markup, script) = body[start..].split_once("<script>").expect("a script");
    let (_, rest) = script.split_once("</script>").expect("its end");
    let markup = [markup, rest].concat();
    for part in markup.split('<').skip(1) {
        let Some((tag, _)) = part.split_once('>') else { return false };
        let name = tag.trim_start_matches('/').split([' ', '/']).next().unwrap_or_default();
        if tag.ends_with('/') || name == "meta" {
            continue;
        }
        if tag.starts_with('/') {
            if open.pop() != Some(name) {
                return false;
            }
        } else {
            open.push(name);
        }
    }
    open.is_empty()
}

#[test]
fn pages_show_every_plan_and_load_nothing() {
    let [model, tokens, ..] = nano();
    let Some(backend) = backends().first().copied() else { return };
    let folder = Folder::new();
    let page = folder.text("page.html");
    let args = ["eval", &model, "--tokens", &tokens, "--windows", "2", "--backend", backend, "--html", &page];
    snlp(&[&args[..], &["--plan", "6xF1", "--plan", "3xF2[k=2]"]].concat()).code(0);
    let html = std::fs::read_to_string(&page).expect("written");
    assert!(is_well_formed(&html), "{html}");
    for plan in ["sequential", "s6 6xF1", "s6 3xF2[k=2]"] {
        assert!(html.contains(&format!("<td>{plan}</td>")), "{plan} is in the table");
        assert!(html.contains(&format!(">{plan}</text>")), "{plan} is in the picture");
    }
    // For wide screens and for narrow ones.
    assert_eq!(html.matches("<circle").count(), 6);
    // Six layers of the first plan and six of the second are not those of the sequential model.
    assert!(html.contains("s6 6xF1, layer 11: ") && !html.contains("s6 6xF1, layer 5: "));
    for outside in ["http:", "https:", "src=", "href=", "url("] {
        assert!(!html.contains(outside), "{outside}");
    }
    let over = ["eval", &model, "--tokens", &tokens, "--html", &tokens];
    snlp(&over).code(2).says(&["--html", "help:"]);
}

#[test]
fn plans_come_from_files() {
    let [model, tokens, ..] = nano();
    let folder = Folder::new();
    std::fs::copy(&model, folder.path("model.onnx")).expect("copied");
    let copy = folder.text("model.onnx");
    snlp(&["inspect", &copy, "--plan", "auto"]).code(3).says(&["plan.toml", "make one: snlp plan", "help:"]);
    std::fs::write(folder.path("plan.toml"), "plan = \"6xF1[init=h0,k=2]\"\n").expect("written");
    let file = folder.text("plan.toml");
    for plan in ["auto", &file] {
        let found = snlp(&["inspect", &copy, "--plan", plan, "--json"]).code(0).json();
        assert_eq!(found["plan"], "s6 6xF1[k=2]");
    }
    let out = folder.text("out.onnx");
    snlp(&["convert", &copy, "-o", &out, "--plan", "auto"]).code(0);
    assert_eq!(snlp(&["inspect", &out, "--json"]).code(0).json()["plan"], "s6 6xF1[k=2]");
    if let Some(backend) = backends().first().copied() {
        let args =
            ["eval", &copy, "--tokens", &tokens, "--windows", "1", "--plan", "auto", "--plan", "6xF1[k=2]"];
        let found = snlp(&[&args[..], &["--json", "--backend", backend]].concat()).code(0).json();
        assert_eq!(found["plans"][0]["ppl"], found["plans"][1]["ppl"]);
    }
    // What was found for another model is used only where it is named.
    let other = "plan = \"6xF1\"\n[model]\nfile = \"other.onnx\"\nsha256 = \"00\"\nlayers = 12\n";
    std::fs::write(folder.path("plan.toml"), other).expect("written");
    snlp(&["inspect", &copy, "--plan", "auto"]).code(3).says(&["another model, 'other.onnx'", "help:"]);
    let named = snlp(&["inspect", &copy, "--plan", &file, "-v"]).code(0);
    assert!(named.stderr.contains("another model"), "{}", named.stderr);
    std::fs::write(folder.path("plan.toml"), "plan = [6]\n").expect("written");
    snlp(&["inspect", &copy, "--plan", &file]).code(3).says(&["plan.toml", "line 1", "help:"]);
    std::fs::write(folder.path("plan.toml"), "plan = \"24xF1\"\n").expect("written");
    snlp(&["inspect", &copy, "--plan", &file]).code(3).says(&["covers 24 layers", "help:"]);
}

#[test]
fn a_plan_inside_the_budget_is_found_and_used() {
    let [model, tokens, ..] = nano();
    let Some(backend) = backends().first().copied() else { return };
    let folder = Folder::new();
    std::fs::copy(&model, folder.path("model.onnx")).expect("copied");
    let (copy, file, page) = (folder.text("model.onnx"), folder.text("plan.toml"), folder.text("p.html"));
    let common = ["--tokens", &tokens, "--windows", "4", "--backend", backend, "--json"];
    let search = |more: &[&str]| {
        let args = [&["plan", &copy, "--budget", "ppl+2%,top1>90%"][..], &common, more].concat();
        snlp(&args).code(0).json()
    };
    let found = search(&["-o", &file, "--html", &page]);
    let chosen = &found["chosen"];
    assert!(number(&chosen["sequential_depth"]) <= 7.0, "{found}");
    assert!(number(&chosen["modelled_speedup"]) > 1.2, "{found}");
    assert!(number(&chosen["ppl_change"]) <= 0.02 && number(&chosen["top1"]) >= 0.9, "{found}");
    assert_eq!((&chosen["windows"], &chosen["tokens"]), (&4.into(), &1024.into()));
    // The same numbers as eval gives.
    let eval = snlp(&[&["eval", &copy, "--plan", "auto"][..], &common].concat()).code(0).json();
    assert_eq!(eval["plans"][0]["plan"], found["plan"]);
    for key in ["ppl", "kl", "top1"] {
        let (a, b) = (number(&eval["plans"][0][key]), number(&chosen[key]));
        assert!((a - b).abs() < 1e-5 * a.abs().max(1.0), "{key}: {a} and {b}");
    }
    // The frontier is one: what is faster loses more.
    let frontier = found["frontier"].as_array().expect("rows");
    assert!(frontier.len() >= 3, "{found}");
    assert_eq!(frontier[0]["plan"], "sequential");
    assert!(frontier.windows(2).all(|w| number(&w[0]["cost"]) >= number(&w[1]["cost"])), "{found}");
    let html = std::fs::read_to_string(&page).expect("written");
    assert!(is_well_formed(&html) && html.contains("class=\"chosen\""), "{html}");
    // The same seed finds the same.
    let again = search(&["--seed", "0"]);
    assert_eq!((&again["plan"], &again["frontier"]), (&found["plan"], &found["frontier"]));
}

#[test]
fn where_nothing_is_inside_the_budget_the_sequential_model_stays() {
    let [model, tokens, ..] = nano();
    let Some(backend) = backends().first().copied() else { return };
    let common = ["--tokens", &tokens, "--windows", "2", "--backend", backend];
    let args = [&["plan", &model, "--budget", "kl<0"][..], &common].concat();
    let text = snlp(&args).code(0).stdout;
    assert!(text.starts_with("kl<0: sequential\n") && text.contains("closest: "), "{text}");
    for budget in ["", "ppl", "ppl-1%", "speed>2"] {
        let args = [&["plan", &model, "--budget", budget][..], &common].concat();
        assert!(snlp(&args).code(2).stderr.contains("ppl+1%"));
    }
    let cnn = fixture("bad/cnn.onnx");
    snlp(&["plan", &cnn, "--tokens", &tokens, "--budget", "ppl+1%"]).code(3).says(&["no chain", "help:"]);
    snlp(&["plan", &model, "--budget", "ppl+1%"]).code(2);
    snlp(&["plan", &model, "--tokens", &tokens]).code(2);
    snlp(&["plan", &model, "--tokens", &tokens, "--budget", "ppl+1%", "--profile", "1,2"]).code(2);
}

#[test]
fn calibrated_guesses_are_found_beside_the_model() {
    let [model, tokens, text, tokenizer] = nano();
    let Some(backend) = backends().first().copied() else { return };
    let folder = Folder::new();
    std::fs::copy(&model, folder.path("model.onnx")).expect("copied");
    let model = folder.text("model.onnx");
    let common = ["--backend", backend, "--json"];
    let args = ["calibrate", &model, "--text", &text, "--tokenizer", &tokenizer, "--rank", "24"];
    let made = snlp(&[&args[..], &common].concat()).code(0).json();
    let explained: Vec<f64> = made["explained"].as_array().expect("a list").iter().map(number).collect();
    assert_eq!((explained.len(), made["rank"].as_u64()), (12, Some(24)));
    assert!(explained.iter().all(|e| (0.2..1.0).contains(e)), "{explained:?}");
    assert!(folder.path("preheat.safetensors").is_file());

    // Where all layers start from the embedding, a prediction is the better guess.
    let plans = ["--plan", "12xF1", "--plan", "12xF1[init=preheat]", "--plan", "12xF1[k=12,init=preheat]"];
    let args = ["eval", &model, "--tokens", &tokens, "--windows", "2"];
    let found = snlp(&[&args[..], &plans, &common].concat()).code(0).json();
    let kl = |plan: usize| number(&found["plans"][plan]["kl"]);
    assert!(kl(1) < 0.6 * kl(0), "{found}");
    assert!(kl(2) < 1e-6, "{found}");

    // The calibration is one model's.
    std::fs::copy(fixture("gpt2-tiny/model.onnx"), folder.path("model.onnx")).expect("copied");
    let args = ["inspect", &model, "--plan", "4xF1[init=preheat]"];
    snlp(&args).code(3).says(&["calibrated for another model", "snlp calibrate"]);
    // It predicts one stream.
    let streams = fixture("mhc/hcn.onnx");
    let out = folder.text("out.safetensors");
    let args = ["calibrate", &streams, "--tokens", &tokens, "--backend", backend, "-o", &out];
    snlp(&args).code(3).says(&["one residual stream", "init=batch_fwd"]);
    let args = ["inspect", &streams, "--plan", "4xF1[init=preheat]"];
    snlp(&args).code(3).says(&["one residual stream", "init=batch_fwd"]);
}
