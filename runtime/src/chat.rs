//! Conversations as the text that a model was trained on, through the template that came with it.
//!
//! A template is a program in a file that nobody vouches for. It runs without access to anything but the conversation,
//! with a bound on its steps and on what it writes.

use crate::{Error, Result};
use frit_plan::{ChatInfo, ModelInfo};
use minijinja::value::{Kwargs, Value, ValueKind, from_args};
use minijinja::{Environment, Error as Fault, ErrorKind, State, syntax::SyntaxConfig};
use serde::Serialize;
use std::io::{self, Write};

/// Steps that a template may take.
const FUEL: u64 = 2_000_000;
/// Bytes of a template.
const TEMPLATE_BYTES: usize = 1 << 20;
/// Bytes that a template may write.
const TEXT_BYTES: usize = 16 << 20;

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
        let source = self.0.template.as_str();
        if source.len() > TEMPLATE_BYTES {
            return Err(Error::Chat(format!("it has {} bytes; {TEMPLATE_BYTES} are read", source.len())));
        }
        let env = environment().map_err(told)?;
        let template = env.template_from_str(source).map_err(told)?;
        let token = |token: &Option<String>| Value::from(token.clone().unwrap_or_default());
        let said = |m: &Message| Value::from_pairs([("role", m.role.as_str()), ("content", m.content.as_str())]);
        let context = minijinja::context! {
            messages => messages.iter().map(said).collect::<Vec<Value>>(),
            add_generation_prompt => reply,
            bos_token => token(&self.0.bos),
            eos_token => token(&self.0.eos),
            tools => Value::from(()),
            documents => Value::from(()),
        };
        let mut text = Bounded(Vec::new());
        template.render_captured_to(context, &mut text).map_err(told)?;
        String::from_utf8(text.0).map_err(|e| Error::Chat(format!("it writes what is no text: {e}")))
    }
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

/// What templates find: the language as its usual renderer sets it up, methods of Python's texts and tables, and
/// `raise_exception`.
fn environment() -> std::result::Result<Environment<'static>, Fault> {
    let mut env = Environment::new();
    env.set_syntax(SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build()?);
    env.set_fuel(Some(FUEL));
    env.set_unknown_method_callback(method);
    env.add_filter("tojson", to_json);
    env.add_function("raise_exception", |text: String| -> std::result::Result<Value, Fault> {
        Err(Fault::new(ErrorKind::InvalidOperation, format!("the template refuses the conversation: {text}")))
    });
    Ok(env)
}

/// JSON as Python writes it: a space behind commas and colons, text as it is; with `indent`, one entry a line.
fn to_json(value: &Value, args: Kwargs) -> std::result::Result<Value, Fault> {
    let indent: Option<usize> = args.get("indent")?;
    let fault = |e: serde_json::Error| Fault::new(ErrorKind::BadSerialization, e.to_string());
    let mut text = Vec::new();
    match indent {
        Some(width) => {
            let spaces = vec![b' '; width.min(16)];
            let format = serde_json::ser::PrettyFormatter::with_indent(&spaces);
            value.serialize(&mut serde_json::Serializer::with_formatter(&mut text, format)).map_err(fault)?;
        }
        None => value.serialize(&mut serde_json::Serializer::with_formatter(&mut text, Spaced)).map_err(fault)?,
    }
    let text = String::from_utf8(text).map_err(|e| Fault::new(ErrorKind::BadSerialization, e.to_string()))?;
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

/// Methods that Python's texts and tables have and this language's have not.
fn method(state: &mut State, value: &Value, name: &str, args: &[Value]) -> std::result::Result<Value, Fault> {
    match value.kind() {
        ValueKind::String => match value.as_str() {
            Some(text) => text_method(text, name, args),
            None => Err(Fault::from(ErrorKind::UnknownMethod)),
        },
        ValueKind::Map => match name {
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
        },
        _ => Err(Fault::from(ErrorKind::UnknownMethod)),
    }
}

fn text_method(text: &str, name: &str, args: &[Value]) -> std::result::Result<Value, Fault> {
    let stripped = |front: bool, back: bool| -> std::result::Result<Value, Fault> {
        let (chars,): (Option<String>,) = from_args(args)?;
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
            Ok(Value::from(match times {
                Some(times) => text.replacen(&from, &to, times),
                None => text.replace(&from, &to),
            }))
        }
        "split" => {
            let (by, times): (Option<String>, Option<usize>) = from_args(args)?;
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
