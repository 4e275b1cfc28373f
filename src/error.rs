//! One error type for the whole crate: what kind of decision it asks for, a sentence for a person, and what caused it.

use std::fmt;

/// A kind is a decision that the caller has to take, not a place where something went wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// What the user typed (a config, an argument, a label folder) is wrong; trying again changes nothing. Exit code 2.
    Config,
    /// Something outside is not there now (a camera, a network, a library); trying again may help.
    Unavailable,
    /// A recording has ended, or a stream was closed by its far end in good order.
    EndOfStream,
    /// A model's files are missing, damaged, or not what the manifest says. Exit code 2.
    Model,
    /// Everything else: a fault of this program, the disk, the operating system.
    Internal,
}

/// An error with its kind, a sentence that says what is wrong, where, and what to do, and its cause.
#[derive(Debug)]
pub struct Error {
    kind: Kind,
    message: String,
    source: Option<Box<dyn std::error::Error + Send + Sync>>,
}

pub type Result<T, E = Error> = std::result::Result<T, E>;

impl Error {
    pub fn new(kind: Kind, message: impl Into<String>) -> Self {
        Error { kind, message: message.into(), source: None }
    }

    /// Adds the cause, which is printed behind the message.
    pub fn caused_by(mut self, source: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Self {
        self.source = Some(source.into());
        self
    }

    pub fn config(message: impl Into<String>) -> Self {
        Self::new(Kind::Config, message)
    }

    pub fn unavailable(message: impl Into<String>) -> Self {
        Self::new(Kind::Unavailable, message)
    }

    pub fn end_of_stream() -> Self {
        Self::new(Kind::EndOfStream, "the stream has ended")
    }

    pub fn model(message: impl Into<String>) -> Self {
        Self::new(Kind::Model, message)
    }

    pub fn internal(message: impl Into<String>) -> Self {
        Self::new(Kind::Internal, message)
    }

    /// Puts a sentence of context before the message and keeps the kind.
    pub fn context(mut self, context: impl fmt::Display) -> Self {
        self.message = format!("{context}: {}", self.message);
        self
    }

    pub fn kind(&self) -> Kind {
        self.kind
    }

    /// The process's exit code: 2 where the input is at fault, 1 otherwise.
    pub fn exit_code(&self) -> u8 {
        match self.kind {
            Kind::Config | Kind::Model => 2,
            Kind::Unavailable | Kind::EndOfStream | Kind::Internal => 1,
        }
    }
}

impl fmt::Display for Error {
    /// The message and its causes in one line: `cannot open model.toml: No such file or directory`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)?;
        let mut cause = self.source.as_deref().map(|e| e as &dyn std::error::Error);
        while let Some(e) = cause {
            write!(f, ": {e}")?;
            cause = e.source();
        }
        Ok(())
    }
}

// `source` is not given here: Display prints the whole chain already, and a reporter that walks it would print it twice.
impl std::error::Error for Error {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn prints_context_message_and_cause_in_one_line() {
        let io = std::io::Error::new(std::io::ErrorKind::NotFound, "no such file");
        let e = Error::model("cannot read rgb.onnx").caused_by(io).context("models/default");
        assert_eq!(e.to_string(), "models/default: cannot read rgb.onnx: no such file");
        assert_eq!(e.kind(), Kind::Model);
    }

    #[test]
    fn bad_input_exits_with_2_and_everything_else_with_1() {
        assert_eq!(Error::config("x").exit_code(), 2);
        assert_eq!(Error::model("x").exit_code(), 2);
        assert_eq!(Error::unavailable("x").exit_code(), 1);
        assert_eq!(Error::internal("x").exit_code(), 1);
    }
}
