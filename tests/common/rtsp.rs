//! A real RTSP server for tests: `rtsp_server.py` in a process of its own, which ends with the test.

use std::{
    io::{BufRead, BufReader},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
};

pub struct Server {
    process: Child,
    pub port: u16,
}

impl Server {
    /// Starts a server on a free port.
    pub fn start(arguments: &[&str]) -> Server {
        Server::start_on(0, arguments)
    }

    /// Starts a server on `port`, and waits until it listens.
    pub fn start_on(port: u16, arguments: &[&str]) -> Server {
        let script: PathBuf = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/common/rtsp_server.py");
        // The system's Python: Debian's python3-gi is for no other.
        let mut process = Command::new("/usr/bin/python3")
            .arg(script)
            .args(["--port", &port.to_string()])
            .args(arguments)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("python3 starts");
        let mut line = String::new();
        BufReader::new(process.stdout.take().expect("stdout")).read_line(&mut line).expect("a line from the server");
        let port = line.trim().strip_prefix("ready ").and_then(|port| port.parse().ok());
        let port =
            port.expect("an RTSP server: scripts/setup --tests installs python3-gi and gir1.2-gst-rtsp-server-1.0");
        Server { process, port }
    }

    pub fn address(&self, path: &str) -> String {
        format!("rtsp://127.0.0.1:{}/{path}", self.port)
    }

    /// Ends it as a power cut does: nobody is told.
    pub fn kill(&mut self) {
        self.process.kill().expect("the server is ours to kill");
        self.process.wait().expect("it is gone");
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}
