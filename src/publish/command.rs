//! A command of the user's: one JSON line for each event on its standard input.

use std::{path::Path, process::Stdio, time::Duration};

use serde::Deserialize;
use tokio::{
    io::AsyncWriteExt,
    process::{Child, ChildStdin},
    time::timeout,
};

use super::{Inbox, Sink, cursor_name};
use crate::{
    error::{Error, Result},
    event::Event,
};

/// How long the command may leave its input unread once the pipe is full.
const READ: Duration = Duration::from_secs(10);

/// How long it may take to end when its input has ended.
const END: Duration = Duration::from_secs(1);

/// One `[[command]]` of a config.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// The program and its arguments; no shell is between.
    argv: Vec<String>,
}

impl Config {
    pub fn name(&self) -> String {
        let program = self.argv.first().map(Path::new).and_then(Path::file_name);
        cursor_name("command", &program.unwrap_or_default().to_string_lossy(), &self.argv.join("\0"))
    }

    /// What is wrong with it, if something is.
    pub fn fault(&self) -> Option<String> {
        match self.argv.first().map(String::as_str) {
            None | Some("") => Some("argv is empty; it is a program and its arguments".into()),
            _ => None,
        }
    }
}

/// An event is acknowledged when its line is written and flushed. What a command does with it is its own affair; one that
/// ends is started again.
pub struct Command {
    name: String,
    argv: Vec<String>,
}

impl Command {
    pub fn new(config: &Config) -> Self {
        Command { name: config.name(), argv: config.argv.clone() }
    }

    fn start(&self) -> Result<(Child, ChildStdin)> {
        let program = self.argv.first().map_or("", String::as_str);
        let mut child = tokio::process::Command::new(program)
            .args(&self.argv[1.min(self.argv.len())..])
            .stdin(Stdio::piped())
            // Our standard output is for events.
            .stdout(std::io::stderr())
            .kill_on_drop(true)
            .spawn()
            .map_err(|e| Error::unavailable(format!("cannot start {program}")).caused_by(e))?;
        let stdin = child.stdin.take().ok_or_else(|| Error::internal("a child without standard input"))?;
        Ok((child, stdin))
    }
}

async fn write(child: &mut Child, stdin: &mut ChildStdin, mut line: Vec<u8>) -> Result<()> {
    line.push(b'\n');
    let written = async {
        stdin.write_all(&line).await?;
        stdin.flush().await
    };
    tokio::select! {
        biased;
        status = child.wait() => Err(ended(status)),
        written = timeout(READ, written) => match written {
            Ok(Ok(())) => Ok(()),
            Ok(Err(e)) if e.kind() == std::io::ErrorKind::BrokenPipe => {
                Err(timeout(END, child.wait()).await.map_or_else(|_| Error::unavailable("it has closed its standard input"), ended))
            }
            Ok(Err(e)) => Err(Error::unavailable("cannot write to it").caused_by(e)),
            Err(_) => Err(Error::unavailable(format!("it has not read its standard input for {} s", READ.as_secs()))),
        },
    }
}

fn ended(status: std::io::Result<std::process::ExitStatus>) -> Error {
    match status {
        Ok(status) => Error::unavailable(format!("it has ended ({status})")),
        Err(e) => Error::unavailable("it has ended").caused_by(e),
    }
}

impl Sink for Command {
    fn name(&self) -> &str {
        &self.name
    }

    fn target(&self) -> String {
        // Arguments may hold secrets.
        format!("command {}", self.argv.first().map_or("", String::as_str))
    }

    async fn session(&mut self, inbox: &mut Inbox) -> Result<()> {
        let (mut child, mut stdin) = self.start()?;
        loop {
            let delivery = tokio::select! {
                status = child.wait() => return Err(ended(status)),
                delivery = inbox.next() => delivery,
            };
            let Some(delivery) = delivery else { break };
            write(&mut child, &mut stdin, delivery.json()?).await?;
            inbox.acknowledge(delivery.event.seq);
            inbox.connected();
        }
        drop(stdin);
        let _ = timeout(END, child.wait()).await;
        Ok(())
    }

    async fn test(&mut self, event: &Event) -> Result<String> {
        let (mut child, mut stdin) = self.start()?;
        let json = serde_json::to_vec(event).map_err(|e| Error::internal("JSON").caused_by(e))?;
        write(&mut child, &mut stdin, json).await?;
        drop(stdin);
        match timeout(END, child.wait()).await {
            Ok(Ok(status)) if status.success() => Ok("it took the line and ended well".into()),
            Ok(status) => Err(ended(status)),
            Err(_) => Ok("it took the line (and was stopped)".into()),
        }
    }
}
