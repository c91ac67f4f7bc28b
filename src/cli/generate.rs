//! `snlp generate`: text, token by token.

use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use clap::Args;
use serde_json::{Value, json};
use snlp::error::{Error, Kind};
use snlp::feeds::index_bounds;
use snlp::language::decoder::{Decoder, Stepper};
use snlp::language::generate::{Draft, Generated, Request, generate, speculate};
use snlp::language::inputs::{longest, token_input};
use snlp::language::sampling::Sampling;
use snlp::language::tokenizer::Tokenizer;
use snlp::passes::plan::{KvCache, Plan, Segment};
use snlp::plan_file::GivenPlan;
use snlp::source::Source;
use snlp::summary::step_dispatches;

use super::backend::Backend;
use super::ui::{self, Ui};
use super::{Common, check_plan, read_model};

/// Room that caches have beyond the tokens asked for: a multiple of this.
const ROOM: usize = 64;

/// Generate text
///
/// The model is taken forward with caches that stay on the device: those of an export with past, or ones
/// derived from the graph of an export without. Where neither is possible the whole sequence is computed
/// again for each token, and a notice says why. A plan decodes with exact caches, one for each iteration.
/// With --speculate a plan drafts tokens that the sequential model checks, several in one forward: the text
/// is what the sequential model alone would write.
#[derive(Args)]
#[command(after_help = "Example:\n  snlp generate fixtures/nano/model.onnx --prompt 'ROMEO:' -n 64\n  \
                  snlp generate model.onnx --prompt 'Once' --speculate 6xF1 --draft 4 --temperature 0.8 --seed 7")]
pub struct Generate {
    /// The .onnx file
    model: PathBuf,
    /// The tokenizer, a tokenizer.json of Hugging Face's (default: the one beside the model)
    #[arg(long, value_name = "T")]
    tokenizer: Option<PathBuf>,
    /// Text to go on from
    #[arg(long, value_name = "TEXT", required_unless_present = "prompt_ids")]
    prompt: Option<String>,
    /// Token ids to go on from, instead of text; no tokenizer is needed then
    #[arg(long, value_name = "IDS", value_delimiter = ',', conflicts_with = "prompt")]
    prompt_ids: Option<Vec<u32>>,
    /// Tokens to generate at most
    #[arg(short = 'n', long = "tokens", value_name = "N", default_value_t = 128,
          value_parser = clap::value_parser!(u32).range(..=1 << 20))]
    count: u32,
    /// Decode with this plan
    #[arg(long, value_name = "PLAN")]
    plan: Option<String>,
    /// Draft with this plan and check with the sequential model
    #[arg(long, value_name = "PLAN", conflicts_with = "plan")]
    speculate: Option<String>,
    /// Tokens that a round drafts: a number, or auto
    #[arg(long, value_name = "B", default_value = "4", requires = "speculate", value_parser = draft)]
    draft: Draft,
    /// Divides the logits; 0 takes the best token always
    #[arg(long, value_name = "T", default_value_t = 0.0, value_parser = not_negative)]
    temperature: f32,
    /// Choose among the K best tokens
    #[arg(long, value_name = "K", value_parser = clap::value_parser!(u32).range(1..))]
    top_k: Option<u32>,
    /// Choose among the best tokens whose probabilities first add up to P
    #[arg(long, value_name = "P", value_parser = fraction)]
    top_p: Option<f32>,
    /// Make tokens that occurred less likely: above 1
    #[arg(long, value_name = "R", default_value_t = 1.0, value_parser = positive)]
    repetition_penalty: f32,
    /// Seed of the choices
    #[arg(long, value_name = "S", default_value_t = 0)]
    seed: u64,
    /// End when this text appears; it is not printed. May be given several times
    #[arg(long = "stop", value_name = "TEXT", value_parser = clap::builder::NonEmptyStringValueParser::new())]
    stops: Vec<String>,
    /// Do not end at the model's end-of-text token
    #[arg(long)]
    ignore_eos: bool,
    /// Print one JSON document instead of the text
    #[arg(long)]
    json: bool,
}

fn number(text: &str, fits: impl Fn(f32) -> bool, what: &str) -> Result<f32, String> {
    text.parse().ok().filter(|x: &f32| x.is_finite() && fits(*x)).ok_or_else(|| format!("must be {what}"))
}

fn not_negative(text: &str) -> Result<f32, String> {
    number(text, |x| x >= 0.0, "a number from 0 on")
}

fn positive(text: &str) -> Result<f32, String> {
    number(text, |x| x > 0.0, "a number above 0")
}

fn fraction(text: &str) -> Result<f32, String> {
    number(text, |x| x > 0.0 && x <= 1.0, "a number above 0 and at most 1")
}

fn draft(text: &str) -> Result<Draft, String> {
    match text {
        "auto" => Ok(Draft::Adaptive),
        n => n
            .parse()
            .ok()
            .filter(|n| (1..=64).contains(n))
            .map(Draft::Fixed)
            .ok_or_else(|| "must be a number from 1 to 64, or auto".to_string()),
    }
}

/// Where the text goes as it comes.
struct Printer<'t> {
    tokenizer: Option<&'t Tokenizer>,
    stream: Option<snlp::language::tokenizer::Stream<'t>>,
    stops: &'t [String],
    ends: Vec<u32>,
    silent: bool,
    /// All text so far.
    text: String,
    /// How much of it is printed.
    printed: usize,
    reason: &'static str,
    interrupted: Arc<AtomicBool>,
    failure: Option<Error>,
}

impl Printer<'_> {
    fn token(&mut self, id: u32) -> ControlFlow<()> {
        match self.add(id) {
            Ok(flow) => flow,
            Err(e) => {
                self.failure = Some(e);
                ControlFlow::Break(())
            }
        }
    }

    fn add(&mut self, id: u32) -> Result<ControlFlow<()>, Error> {
        if self.interrupted.load(Ordering::Relaxed) {
            return Ok(self.end("interrupt"));
        }
        if self.ends.contains(&id) {
            return Ok(self.end("eos"));
        }
        let piece = match &mut self.stream {
            Some(stream) => stream.push(id)?.unwrap_or_default(),
            None if self.text.is_empty() => id.to_string(),
            None => format!(",{id}"),
        };
        self.put(&piece)
    }

    /// What the last tokens left open, and what waited.
    fn finish(&mut self) -> Result<(), Error> {
        if self.reason != "stop"
            && let Some(stream) = self.stream.take()
            && let Some(piece) = stream.finish()?
        {
            let _ = self.put(&piece)?;
        }
        self.flush(self.text.len())
    }

    fn put(&mut self, piece: &str) -> Result<ControlFlow<()>, Error> {
        self.text.push_str(piece);
        if let Some(at) = self.stops.iter().filter_map(|s| self.text.find(s.as_str())).min() {
            self.text.truncate(at);
            self.flush(at)?;
            return Ok(self.end("stop"));
        }
        // What may be the beginning of a stop string waits.
        let held = self.stops.iter().map(|s| overlap(&self.text, s)).max().unwrap_or(0);
        self.flush(self.text.len() - held)?;
        Ok(ControlFlow::Continue(()))
    }

    fn end(&mut self, reason: &'static str) -> ControlFlow<()> {
        self.reason = reason;
        ControlFlow::Break(())
    }

    fn flush(&mut self, to: usize) -> Result<(), Error> {
        if !self.silent && to > self.printed {
            ui::print(&self.text[self.printed..to])?;
        }
        self.printed = self.printed.max(to);
        Ok(())
    }
}

/// Bytes at the end of `text` that are a beginning of `stop`.
fn overlap(text: &str, stop: &str) -> usize {
    let lengths = stop.char_indices().map(|(i, _)| i).skip(1);
    lengths.filter(|n| text.ends_with(&stop[..*n])).max().unwrap_or(0)
}

impl Generate {
    /// Runs the command.
    pub fn run(self, common: &Common, ui: &Ui) -> Result<(), Error> {
        let plan = self.plan.as_deref().or(self.speculate.as_deref()).unwrap_or("sequential");
        let plan = GivenPlan::of(plan, &self.model)?;
        let tokenizer = self.tokenizer()?;
        let prompt = match (&self.prompt_ids, &tokenizer, &self.prompt) {
            (Some(ids), _, _) => ids.clone(),
            (None, Some(tokenizer), Some(text)) => tokenizer.encode(text)?,
            _ => return Err(Error::usage("generate needs --prompt with a tokenizer, or --prompt-ids")),
        };
        let model = read_model(&self.model, ui)?;
        model.require_supported()?;
        let source = model.of_one_sequence()?;
        // The last token is read by nobody, unless drafts are checked behind it.
        let unread = usize::from(self.speculate.is_none());
        let capacity = capacity(&source, &self.model, (prompt.len(), self.count as usize), unread)?;
        check_tokens(&source, &prompt)?;
        check_plan(&model, &plan, ui)?;
        let mut steppers = vec![];
        if self.speculate.is_some() {
            steppers.push(stepper(&source, &Plan::sequential(), capacity, ui)?);
        }
        steppers.push(stepper(&source, &plan.plan, capacity, ui)?);
        if self.speculate.is_some() && !steppers.iter().all(Stepper::is_cached) {
            return Err(Error::input(format!(
                "{}: speculation needs caches, which cannot be derived for the model or its plan",
                self.model.display()
            ))
            .help(
                "try another plan, or generate without --speculate; the note above says what is in the way",
            ));
        }
        let backend = Backend::open(common, ui)?;
        let runners = backend.load_steppers(&steppers)?;
        let interrupted = Arc::new(AtomicBool::new(false));
        let seen = interrupted.clone();
        // A second handler in one process is refused; the first one then still works.
        let _ = ctrlc::set_handler(move || seen.store(true, Ordering::Relaxed));
        let mut printer = Printer {
            tokenizer: tokenizer.as_ref(),
            stream: tokenizer.as_ref().map(|t| t.stream(&prompt)),
            stops: &self.stops,
            ends: if self.ignore_eos { vec![] } else { end_tokens(&self.model, ui) },
            silent: self.json,
            text: String::new(),
            printed: 0,
            reason: "length",
            interrupted,
            failure: None,
        };
        if let (Some(text), false) = (&self.prompt, self.json) {
            ui::print(text)?;
        }
        let sampling = Sampling {
            temperature: self.temperature,
            top_k: self.top_k.map(|k| k as usize),
            top_p: self.top_p,
            repetition_penalty: self.repetition_penalty,
        };
        let request = Request {
            prompt: &prompt,
            count: self.count as usize,
            sampling: &sampling,
            seed: self.seed,
            reader: &mut |id| printer.token(id),
        };
        let mut decoders: Vec<Decoder<'_>> =
            steppers.iter().zip(&runners).map(|(s, r)| Decoder::new(s, r)).collect();
        let start = Instant::now();
        let made = match &mut decoders[..] {
            [model] => generate(model, request),
            [model, draft] => speculate(model, draft, self.draft, request),
            _ => Err(Error::new(Kind::Internal, "no model was made")),
        };
        let seconds = start.elapsed().as_secs_f64();
        let made = made.map_err(|e| e.about(&self.model))?;
        if let Some(failure) = printer.failure {
            return Err(failure);
        }
        printer.finish()?;
        if self.json {
            return ui::print_json(&document(&made, &printer, seconds, &steppers));
        }
        ui::print("\n")?;
        ui.notice(&summary(&made));
        Ok(())
    }

    fn tokenizer(&self) -> Result<Option<Tokenizer>, Error> {
        let beside = self.model.with_file_name("tokenizer.json");
        match (&self.tokenizer, &self.prompt_ids) {
            (Some(path), _) => Tokenizer::read(path).map(Some),
            (None, Some(_)) if !self.stops.is_empty() => {
                Err(Error::usage("--stop is text, which --prompt-ids alone has none of")
                    .help("give --tokenizer"))
            }
            (None, Some(_)) => Ok(None),
            (None, None) if beside.exists() => Tokenizer::read(&beside).map(Some),
            (None, None) => Err(Error::usage(format!("there is no tokenizer at {}", beside.display()))
                .help("give --tokenizer, or --prompt-ids")),
        }
    }
}

/// Refuses ids that the model's table of tokens does not have.
fn check_tokens(source: &Source, prompt: &[u32]) -> Result<(), Error> {
    let name = token_input(&source.graph)?;
    let rows = index_bounds(&source.graph).into_iter().filter(|b| b.input == name).map(|b| b.rows).min();
    match rows.and_then(|rows| prompt.iter().find(|id| i64::from(**id) >= rows).zip(Some(rows))) {
        Some((id, rows)) => Err(Error::input(format!(
            "{}: token {id} is none of the model's, which are 0 to {}",
            source.path.display(),
            rows - 1
        ))
        .help("token ids must come from the tokenizer that the model was trained with")),
        None => Ok(()),
    }
}

/// Positions that caches have room for: those of a prompt and of `count` tokens, the last `unread` of which are not
/// gone on from.
fn capacity(
    source: &Source,
    model: &Path,
    (prompt, count): (usize, usize),
    unread: usize,
) -> Result<usize, Error> {
    let needed = prompt + count.saturating_sub(unread);
    let room = needed.next_multiple_of(ROOM);
    match longest(&source.graph, room) {
        Some(most) if needed > most => Err(Error::input(format!(
            "{}: {prompt} tokens of prompt and {count} to generate are more than the {most} that the model has \
             positions for",
            model.display()
        ))
        .help("shorten the prompt, or generate fewer tokens (-n)")),
        most => Ok(most.unwrap_or(room)),
    }
}

/// The stepper of a plan, with caches if they can be had.
fn stepper(source: &Source, plan: &Plan, capacity: usize, ui: &Ui) -> Result<Stepper, Error> {
    let shares =
        |s: &Segment| matches!(s, Segment::Parallel(p) if p.kv == Some(KvCache::Shared) && p.depth() > 1);
    if plan.segments.iter().any(shares) {
        ui.notice(
            "kv=shared changes nothing here: each layer and iteration has its own cache, which is exact",
        );
    }
    let (stepper, uncached) = Stepper::new(source, &source.place(plan)?, capacity)?;
    if let Some(why) = uncached {
        ui.warn(&format!(
            "{}: no cached step can be derived: {why}; the whole sequence is computed again for each token",
            source.path.display()
        ));
    }
    Ok(stepper)
}

/// The tokens that end a text, by the configuration that exporters leave beside a model; says which cannot be read.
fn end_tokens(model: &Path, ui: &Ui) -> Vec<u32> {
    for name in ["generation_config.json", "genai_config.json", "config.json"] {
        let path = model.with_file_name(name);
        let Ok(text) = std::fs::read_to_string(&path) else { continue };
        let config = match serde_json::from_str::<Value>(&text) {
            Ok(config) => config,
            Err(error) => {
                ui.warn(&format!("'{}' is no JSON, and ends no text: {error}", path.display()));
                continue;
            }
        };
        let found = config.get("eos_token_id").or_else(|| config.get("model")?.get("eos_token_id"));
        let one = |v: &Value| v.as_u64().and_then(|n| u32::try_from(n).ok());
        let ids = match found {
            Some(Value::Array(list)) => list.iter().filter_map(one).collect(),
            Some(value) => one(value).into_iter().collect(),
            None => vec![],
        };
        if !ids.is_empty() {
            return ids;
        }
    }
    vec![]
}

fn document(made: &Generated, printer: &Printer<'_>, seconds: f64, steppers: &[Stepper]) -> Value {
    let speculation = made.speculation.map(|s| {
        json!({
            "accepted": s.accepted,
            "drafted": s.drafted,
            "rounds": s.rounds,
            "acceptance": s.accepted as f64 / s.drafted.max(1) as f64,
        })
    });
    json!({
        "text": printer.tokenizer.map(|_| &printer.text),
        "tokens": made.tokens,
        "stopped": printer.reason,
        "seconds": seconds,
        "first_token_seconds": made.first.as_secs_f64(),
        "tokens_per_second": made.rate(),
        "cached": steppers.iter().all(Stepper::is_cached),
        "dispatches": steppers.iter().map(step_dispatches).collect::<Vec<_>>(),
        "cache_bytes": steppers.iter().map(Stepper::cache_bytes).sum::<u64>(),
        "speculation": speculation,
    })
}

fn summary(made: &Generated) -> String {
    let mut out =
        format!("{} tokens, the first after {:.0} ms", made.tokens.len(), made.first.as_secs_f64() * 1e3);
    if let Some(rate) = made.rate() {
        out += &format!(", then {rate:.1} a second");
    }
    if let Some(s) = made.speculation {
        out += &format!(
            "; {} of {} drafts accepted in {} rounds, {:.2} tokens a round",
            s.accepted,
            s.drafted,
            s.rounds,
            made.tokens.len() as f64 / s.rounds.max(1) as f64
        );
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn beginnings_of_stop_strings_wait() {
        assert_eq!(overlap("the en", "end"), 2);
        assert_eq!(overlap("the end", "end"), 0);
        assert_eq!(overlap("aab", "abc"), 2);
        assert_eq!(overlap("x", "ü"), 0);
    }

    #[test]
    fn drafts_are_a_number_or_auto() {
        assert_eq!(draft("4"), Ok(Draft::Fixed(4)));
        assert_eq!(draft("auto"), Ok(Draft::Adaptive));
        assert!(draft("0").is_err() && draft("many").is_err());
    }
}
