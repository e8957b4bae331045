//! Conversations as the text that a model was trained on, through the template that came with it.
//!
//! A template is a program in a file that nobody vouches for. It runs without access to anything but the conversation, and
//! its size, its steps, the bytes that it makes and writes, and the depth of its calls and values are bounded.

use crate::{Error, Result};
use frit_plan::{ChatInfo, ModelInfo};
use minijinja::value::{Kwargs, Rest, Value, ValueKind, from_args};
use minijinja::{Environment, Error as Fault, ErrorKind, State, filters, syntax::SyntaxConfig};
use serde::Serialize;
use std::io::{self, Write};
use std::sync::mpsc;
use std::time::Duration;

/// Steps that a template may take; [`BYTES_A_STEP`] bytes that it makes or reads count as one.
const FUEL: u64 = 500_000;
const BYTES_A_STEP: u64 = 64;
/// Bytes of a template. Chains of operators are as deep as they are long, so this bounds the depth of the syntax tree.
const TEMPLATE_BYTES: usize = 64 << 10;
/// Bytes that a template may write.
const TEXT_BYTES: usize = 8 << 20;
/// How long a template may run; the other bounds end all but a few templates sooner. Beyond it the caller gets an error
/// and the thread is left to itself: the operators `~` and `in` write values as text without weighing them.
const TIME: Duration = Duration::from_secs(10);
/// Operators `~` of a template: folding a chain of them takes time by the square of its length.
const CONCATENATIONS: usize = 2000;
/// Values inside a value that is written as text, and how deep they may lie in each other.
const PARTS: usize = 1 << 16;
const DEPTH: usize = 64;
/// Bytes of stack: what the deepest tree and the deepest value take that the bounds above admit. Most of it is never
/// touched.
const STACK_BYTES: usize = 512 << 20;

/// One message of a conversation.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Message {
    /// Who speaks: `system`, `user` or `assistant`.
    pub role: String,
    /// What is said.
    pub content: String,
}

impl Message {
    /// A message.
    pub fn new(role: &str, content: &str) -> Message {
        Message { role: role.into(), content: content.into() }
    }
}

/// The template of a model.
#[derive(Clone, Copy, Debug)]
pub struct ChatTemplate<'m>(&'m ChatInfo);

impl<'m> ChatTemplate<'m> {
    /// The template of a model, if it has one.
    pub fn of(model: &'m ModelInfo) -> Option<ChatTemplate<'m>> {
        model.chat.as_ref().map(ChatTemplate)
    }

    /// The text of a conversation; with `reply` it ends where the model is to answer.
    ///
    /// # Errors
    /// [`Error::Chat`]: a template that cannot be read, that fails or refuses the conversation, or that goes beyond its
    /// bounds.
    pub fn render(&self, messages: &[Message], reply: bool) -> Result<String> {
        let size = self.0.template.len();
        if size > TEMPLATE_BYTES {
            return Err(Error::Chat(format!("it has {size} bytes; {TEMPLATE_BYTES} are read")));
        }
        let joined = self.0.template.matches('~').count();
        if joined > CONCATENATIONS {
            return Err(Error::Chat(format!("it has {joined} operators `~`; {CONCATENATIONS} are read")));
        }
        let (send, receive) = mpsc::channel();
        let (info, messages) = (self.0.clone(), messages.to_vec());
        // A stack of its own: the renderer recurses, and so does what frees a tree or a value.
        std::thread::Builder::new()
            .stack_size(STACK_BYTES)
            .spawn(move || drop(send.send(text(&info, &messages, reply))))
            .map_err(|e| Error::Chat(format!("there is no thread to render it: {e}")))?;
        match receive.recv_timeout(TIME) {
            Ok(text) => text,
            Err(mpsc::RecvTimeoutError::Timeout) => Err(Error::Chat(format!("it runs for more than {TIME:?}"))),
            Err(mpsc::RecvTimeoutError::Disconnected) => Err(Error::Chat("it ended without a text".into())),
        }
    }
}

fn text(info: &ChatInfo, messages: &[Message], reply: bool) -> Result<String> {
    let env = environment().map_err(told)?;
    let template = env.template_from_str(&info.template).map_err(told)?;
    let token = |token: &Option<String>| Value::from(token.clone().unwrap_or_default());
    let said = |m: &Message| Value::from_pairs([("role", m.role.as_str()), ("content", m.content.as_str())]);
    let context = minijinja::context! {
        messages => messages.iter().map(said).collect::<Vec<Value>>(),
        add_generation_prompt => reply,
        bos_token => token(&info.bos),
        eos_token => token(&info.eos),
        tools => Value::from(()),
        documents => Value::from(()),
    };
    let mut text = Bounded(Vec::new());
    template.render_captured_to(context, &mut text).map_err(told)?;
    String::from_utf8(text.0).map_err(|e| Error::Chat(format!("it writes what is no text: {e}")))
}

/// The message of a fault and of what caused it.
fn told(fault: Fault) -> Error {
    let mut text = fault.to_string();
    let mut cause = std::error::Error::source(&fault);
    while let Some(e) = cause {
        text = format!("{text}: {e}");
        cause = e.source();
    }
    Error::Chat(text)
}

/// Takes no more than [`TEXT_BYTES`].
struct Bounded(Vec<u8>);

impl Write for Bounded {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.0.len() + bytes.len() > TEXT_BYTES {
            return Err(io::Error::other(format!("the template writes more than {TEXT_BYTES} bytes")));
        }
        self.0.extend_from_slice(bytes);
        Ok(bytes.len())
    }
    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// What a value takes to be written as text, charged in advance: values may hold others many times over, and themselves.
fn weigh(state: &State, value: &Value) -> std::result::Result<(), Fault> {
    let large = |what| Fault::new(ErrorKind::InvalidOperation, format!("a value is too {what} to be written"));
    let mut open = vec![(value.clone(), 0)];
    let (mut parts, mut bytes) = (0, 0usize);
    while let Some((value, depth)) = open.pop() {
        parts += 1;
        bytes = bytes.saturating_add(value.as_str().map_or(0, str::len));
        if parts > PARTS || bytes > TEXT_BYTES {
            return Err(large("large"));
        }
        if !matches!(value.kind(), ValueKind::Seq | ValueKind::Iterable | ValueKind::Map | ValueKind::Plain) {
            continue;
        }
        if depth == DEPTH {
            return Err(large("deep"));
        }
        for part in value.try_iter().into_iter().flatten() {
            if open.len() > PARTS {
                return Err(large("large"));
            }
            if value.kind() == ValueKind::Map {
                open.push((value.get_item(&part)?, depth + 1));
            }
            open.push((part, depth + 1));
        }
    }
    charge(state, bytes.saturating_add(parts * size_of::<Value>()))
}

/// Puts [`weigh`] in front of filters that write their arguments as text.
macro_rules! weighed {
    ($env:ident: $($name:ident),*) => {
        $(
            $env.add_filter(concat!("unweighed ", stringify!($name)), filters::$name);
            $env.add_filter(stringify!($name), |state: &mut State, args: Rest<Value>| {
                args.iter().try_for_each(|arg| weigh(state, arg))?;
                state.apply_filter(concat!("unweighed ", stringify!($name)), &args)
            });
        )*
    };
}

/// What templates find: the language as its usual renderer sets it up, methods of Python's texts and tables, and
/// `raise_exception`.
fn environment() -> std::result::Result<Environment<'static>, Fault> {
    let mut env = Environment::new();
    env.set_syntax(SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build()?);
    env.set_fuel(Some(FUEL));
    // Both would print all variables, each value as often as it is reachable.
    env.set_debug(false);
    env.remove_global("debug");
    env.set_formatter(|out, state, value| {
        weigh(state, value)?;
        minijinja::escape_formatter(out, state, value)
    });
    weighed!(env: capitalize, escape, format, join, lines, lower, pprint, replace, split, string, title, trim, upper);
    env.add_filter("plain indent", filters::indent);
    env.add_filter("indent", indent);
    env.add_filter("e", |state: &mut State, value: Value| state.apply_filter("escape", &[value]));
    env.set_unknown_method_callback(method);
    env.add_filter("tojson", to_json);
    env.add_function("raise_exception", |state: &State, text: Value| -> std::result::Result<Value, Fault> {
        weigh(state, &text)?;
        Err(Fault::new(ErrorKind::InvalidOperation, format!("the template refuses the conversation: {text}")))
    });
    Ok(env)
}

/// The filter of this name, its spaces charged in advance.
fn indent(state: &mut State, args: Rest<Value>) -> std::result::Result<Value, Fault> {
    args.iter().try_for_each(|arg| weigh(state, arg))?;
    let (places, named): (Rest<Value>, Kwargs) = from_args(&args)?;
    let width = named.get::<Option<usize>>("width")?.or(places.get(1).and_then(Value::as_usize)).unwrap_or(4);
    let lines = args.first().and_then(Value::as_str).map_or(1, |text| 1 + text.matches('\n').count());
    charge(state, lines.saturating_mul(width))?;
    state.apply_filter("plain indent", &args)
}

/// JSON as Python writes it: a space behind commas and colons, text as it is; with `indent`, one entry a line.
fn to_json(state: &State, value: &Value, args: Kwargs) -> std::result::Result<Value, Fault> {
    weigh(state, value)?;
    let indent: Option<usize> = args.get("indent")?;
    let fault = |e: serde_json::Error| Fault::new(ErrorKind::BadSerialization, e.to_string());
    let mut text = Bounded(Vec::new());
    match indent {
        Some(width) => {
            let spaces = vec![b' '; width.min(16)];
            let format = serde_json::ser::PrettyFormatter::with_indent(&spaces);
            value.serialize(&mut serde_json::Serializer::with_formatter(&mut text, format)).map_err(fault)?;
        }
        None => value.serialize(&mut serde_json::Serializer::with_formatter(&mut text, Spaced)).map_err(fault)?,
    }
    charge(state, text.0.len())?;
    let text = String::from_utf8(text.0).map_err(|e| Fault::new(ErrorKind::BadSerialization, e.to_string()))?;
    Ok(Value::from_safe_string(text))
}

/// A space behind commas and colons.
struct Spaced;

impl serde_json::ser::Formatter for Spaced {
    fn begin_array_value<W: ?Sized + Write>(&mut self, w: &mut W, first: bool) -> io::Result<()> {
        if first { Ok(()) } else { w.write_all(b", ") }
    }
    fn begin_object_key<W: ?Sized + Write>(&mut self, w: &mut W, first: bool) -> io::Result<()> {
        if first { Ok(()) } else { w.write_all(b", ") }
    }
    fn begin_object_value<W: ?Sized + Write>(&mut self, w: &mut W) -> io::Result<()> {
        w.write_all(b": ")
    }
}

/// Takes the steps that a method's work is worth, before it is done.
fn charge(state: &State, bytes: usize) -> std::result::Result<(), Fault> {
    state.consume_fuel(bytes as u64 / BYTES_A_STEP)
}

/// Methods that Python's texts and tables have and this language's have not.
fn method(state: &mut State, value: &Value, name: &str, args: &[Value]) -> std::result::Result<Value, Fault> {
    args.iter().try_for_each(|arg| weigh(state, arg))?;
    match value.kind() {
        ValueKind::String => match value.as_str() {
            Some(text) => text_method(state, text, name, args),
            None => Err(Fault::from(ErrorKind::UnknownMethod)),
        },
        ValueKind::Map => {
            charge(state, size_of::<Value>().saturating_mul(value.len().unwrap_or_default()))?;
            map_method(state, value, name, args)
        }
        _ => Err(Fault::from(ErrorKind::UnknownMethod)),
    }
}

fn map_method(state: &mut State, value: &Value, name: &str, args: &[Value]) -> std::result::Result<Value, Fault> {
    match name {
        "items" => {
            let () = from_args(args)?;
            state.apply_filter("items", &[value.clone()])
        }
        "keys" => {
            let () = from_args(args)?;
            Ok(Value::from_iter(value.try_iter()?))
        }
        "values" => {
            let () = from_args(args)?;
            let values: std::result::Result<Vec<Value>, Fault> =
                value.try_iter()?.map(|key| value.get_item(&key)).collect();
            Ok(Value::from(values?))
        }
        "get" => {
            let (key, default): (Value, Option<Value>) = from_args(args)?;
            let found = value.get_item(&key)?;
            Ok(if found.is_undefined() { default.unwrap_or_else(|| Value::from(())) } else { found })
        }
        _ => Err(Fault::from(ErrorKind::UnknownMethod)),
    }
}

fn text_method(state: &State, text: &str, name: &str, args: &[Value]) -> std::result::Result<Value, Fault> {
    charge(state, text.len())?;
    let stripped = |front: bool, back: bool| -> std::result::Result<Value, Fault> {
        let (chars,): (Option<String>,) = from_args(args)?;
        charge(state, text.len().saturating_mul(chars.as_ref().map_or(0, String::len)))?;
        let matches = |c: char| chars.as_ref().map_or(c.is_whitespace(), |chars| chars.contains(c));
        let text = if front { text.trim_start_matches(matches) } else { text };
        Ok(Value::from(if back { text.trim_end_matches(matches) } else { text }))
    };
    match name {
        "strip" => stripped(true, true),
        "lstrip" => stripped(true, false),
        "rstrip" => stripped(false, true),
        "startswith" => from_args(args).map(|(start,): (String,)| Value::from(text.starts_with(&start))),
        "endswith" => from_args(args).map(|(end,): (String,)| Value::from(text.ends_with(&end))),
        "find" => from_args(args).map(|(part,): (String,)| {
            Value::from(text.find(&part).map_or(-1, |at| text.get(..at).map_or(0, |t| t.chars().count()) as i64))
        }),
        "count" => from_args(args).map(|(part,): (String,)| Value::from(text.matches(&part).count())),
        "upper" => from_args(args).map(|()| Value::from(text.to_uppercase())),
        "lower" => from_args(args).map(|()| Value::from(text.to_lowercase())),
        "title" => from_args(args).map(|()| Value::from(title(text))),
        "replace" => {
            let (from, to, times): (String, String, Option<usize>) = from_args(args)?;
            let found = text.matches(from.as_str()).count().min(times.unwrap_or(usize::MAX));
            charge(state, found.saturating_mul(to.len()))?;
            Ok(Value::from(match times {
                Some(times) => text.replacen(&from, &to, times),
                None => text.replace(&from, &to),
            }))
        }
        "split" => {
            let (by, times): (Option<String>, Option<usize>) = from_args(args)?;
            let found = by.as_ref().map_or(text.len() / 2, |by| text.matches(by.as_str()).count());
            charge(state, found.min(times.unwrap_or(usize::MAX)).saturating_mul(size_of::<Value>()))?;
            let parts: Vec<Value> = match (by, times) {
                (None, _) => text.split_whitespace().map(Value::from).collect(),
                (Some(by), None) => text.split(by.as_str()).map(Value::from).collect(),
                (Some(by), Some(times)) => text.splitn(times.saturating_add(1), by.as_str()).map(Value::from).collect(),
            };
            Ok(Value::from(parts))
        }
        _ => Err(Fault::from(ErrorKind::UnknownMethod)),
    }
}

/// The first letter of each word large, the others small.
fn title(text: &str) -> String {
    let mut inside = false;
    text.chars()
        .flat_map(|c| {
            let small = std::mem::replace(&mut inside, c.is_alphabetic());
            let letters: Vec<char> = if small { c.to_lowercase().collect() } else { c.to_uppercase().collect() };
            letters
        })
        .collect()
}

#[cfg(test)]
#[path = "chat_tests.rs"]
mod tests;
