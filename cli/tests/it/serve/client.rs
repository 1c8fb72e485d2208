//! A daemon that a test started, and a client that says exactly what it is told, byte by byte.

use crate::support::Sandbox;
use serde_json::Value;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::process::{Child, Command, ExitStatus};
use std::time::{Duration, Instant};

/// A config of the tiny random network. Its greedy answers do not end by themselves, so they last as long as they may.
pub(super) const TINY: &str = "\
[model]
device = \"cpu\"
random = { family = \"llama\", hidden_size = 64, layers = 2, heads = 4, kv_heads = 2, intermediate_size = 128 }
[serve]
name = \"tiny\"
port = 0
";

/// Silence after which a test gives up.
const PATIENCE: Duration = Duration::from_mins(1);

pub(super) struct Daemon {
    child: Child,
    pub(super) address: String,
    pub(super) token: String,
}

impl Daemon {
    /// Serves the tiny network, with more keys in its `[serve]` table.
    pub(super) fn start(sandbox: &Sandbox, keys: &str) -> Self {
        sandbox.write("serve.toml", format!("{TINY}{keys}"));
        Self::start_with(sandbox, &["--config", "serve.toml"])
    }

    pub(super) fn start_with(sandbox: &Sandbox, args: &[&str]) -> Self {
        let mut child = sandbox.start_speaking(&[&["rollout", "serve"], args].concat());
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let Some(Ok(first)) = lines.next() else {
            panic!("the daemon did not start: {}", std::fs::read_to_string(sandbox.path("stderr")).unwrap());
        };
        let address = first.split("http://").nth(1).and_then(|rest| rest.strip_suffix("/v1")).unwrap().to_owned();
        let told = args.contains(&"--no-token") || args.contains(&"--token");
        let token = if told {
            String::new()
        } else {
            lines.next().unwrap().unwrap().strip_prefix("token: ").unwrap().to_owned()
        };
        Self { child, address, token }
    }

    pub(super) fn client(&self) -> Client {
        Client::connect(&self.address, &self.token)
    }

    /// Sends one request, in a connection of its own.
    pub(super) fn post(&self, path: &str, body: &Value) -> Answer {
        self.client().post(path, body)
    }

    pub(super) fn get(&self, path: &str) -> Answer {
        self.client().send("GET", path, "", b"")
    }

    /// Returns the value of a metric of `/metrics`.
    pub(super) fn metric(&self, name: &str) -> f64 {
        let text = self.get("/metrics").text();
        let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
        line.unwrap_or_else(|| panic!("{name} is not in\n{text}")).parse().unwrap()
    }

    /// Waits until a metric of `/metrics` has this value.
    pub(super) fn await_metric(&self, name: &str, value: f64) {
        let started = Instant::now();
        while self.metric(name) != value {
            assert!(started.elapsed() < PATIENCE, "{name} is {} and not {value}", self.metric(name));
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    pub(super) fn signal(&self, name: &str) {
        assert!(Command::new("kill").args([name, &self.child.id().to_string()]).status().unwrap().success());
    }

    pub(super) fn wait(&mut self) -> ExitStatus {
        self.child.wait().unwrap()
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A connection that is kept alive between requests.
pub(super) struct Client {
    stream: BufReader<TcpStream>,
    address: String,
    token: String,
}

/// A complete response.
#[derive(Debug)]
pub(super) struct Answer {
    pub(super) status: u16,
    /// The header lines, in lower case.
    pub(super) headers: String,
    pub(super) body: Vec<u8>,
}

impl Answer {
    pub(super) fn text(&self) -> String {
        String::from_utf8(self.body.clone()).unwrap()
    }

    pub(super) fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|error| panic!("{error}: {self:?}"))
    }

    /// Returns the JSON of an answer, which must have status 200.
    pub(super) fn ok(&self) -> Value {
        assert_eq!(self.status, 200, "{}", self.text());
        self.json()
    }

    /// The events of a stream but the last, which must be its end.
    pub(super) fn events(&self) -> Vec<Value> {
        assert_eq!(self.status, 200, "{}", self.text());
        let text = self.text();
        let mut data: Vec<&str> = text.split_terminator("\n\n").map(|it| it.strip_prefix("data: ").unwrap()).collect();
        assert_eq!(data.pop(), Some("[DONE]"), "{text}");
        data.into_iter().map(|data| serde_json::from_str(data).unwrap()).collect()
    }
}

impl Client {
    pub(super) fn connect(address: &str, token: &str) -> Self {
        let stream = TcpStream::connect(address).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream.set_nodelay(true).unwrap();
        Self { stream: BufReader::new(stream), address: address.to_owned(), token: token.to_owned() }
    }

    pub(super) fn post(&mut self, path: &str, body: &Value) -> Answer {
        self.send("POST", path, "content-type: application/json\r\n", body.to_string().as_bytes())
    }

    pub(super) fn send(&mut self, method: &str, path: &str, headers: &str, body: &[u8]) -> Answer {
        self.ask(method, path, headers, body);
        self.answer()
    }

    /// Reads an answer to its end.
    pub(super) fn answer(&mut self) -> Answer {
        let (status, headers) = self.head();
        let mut whole = Vec::new();
        if headers.contains("transfer-encoding: chunked") {
            while let Some(chunk) = self.chunk() {
                whole.extend(chunk);
            }
        } else {
            let length = headers.lines().find_map(|line| line.strip_prefix("content-length: ")).unwrap_or("0");
            whole.resize(length.parse().unwrap(), 0);
            self.stream.read_exact(&mut whole).unwrap();
        }
        Answer { status, headers, body: whole }
    }

    /// Sends a request and waits for nothing.
    pub(super) fn ask(&mut self, method: &str, path: &str, headers: &str, body: &[u8]) {
        let token =
            if self.token.is_empty() { String::new() } else { format!("authorization: Bearer {}\r\n", self.token) };
        let head = format!(
            "{method} {path} HTTP/1.1\r\nhost: {}\r\n{token}{headers}content-length: {}\r\n\r\n",
            self.address,
            body.len()
        );
        self.stream.get_mut().write_all(&[head.as_bytes(), body].concat()).unwrap();
    }

    /// Sends the head of a request whose body never comes.
    pub(super) fn announce(&mut self, path: &str, length: usize) {
        let token = &self.token;
        let head = format!(
            "POST {path} HTTP/1.1\r\nhost: {}\r\nauthorization: Bearer {token}\r\n\
             content-type: application/json\r\ncontent-length: {length}\r\n\r\n",
            self.address
        );
        self.stream.get_mut().write_all(head.as_bytes()).unwrap();
    }

    /// Begins a stream; returns its first part.
    pub(super) fn begin(&mut self, path: &str, body: &Value) -> String {
        self.ask("POST", path, "content-type: application/json\r\n", body.to_string().as_bytes());
        let (status, _) = self.head();
        assert_eq!(status, 200);
        String::from_utf8(self.chunk().unwrap()).unwrap()
    }

    /// Reads the rest of a stream.
    pub(super) fn rest(&mut self) -> String {
        let mut text = String::new();
        while let Some(chunk) = self.chunk() {
            text += std::str::from_utf8(&chunk).unwrap();
        }
        text
    }

    /// Reads the status and the headers of a response.
    fn head(&mut self) -> (u16, String) {
        let mut head = String::new();
        while !head.ends_with("\r\n\r\n") {
            assert!(self.stream.read_line(&mut head).unwrap() > 0, "the daemon closed the connection: {head}");
        }
        let head = head.to_ascii_lowercase();
        (head.split(' ').nth(1).unwrap().parse().unwrap(), head)
    }

    fn chunk(&mut self) -> Option<Vec<u8>> {
        let mut size = String::new();
        self.stream.read_line(&mut size).unwrap();
        let size = usize::from_str_radix(size.trim(), 16).unwrap();
        let mut chunk = vec![0; size + 2];
        self.stream.read_exact(&mut chunk).unwrap();
        chunk.truncate(size);
        (size > 0).then_some(chunk)
    }
}
