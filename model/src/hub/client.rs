//! Requests to the hub, or to a mirror of it (`HF_ENDPOINT`).
//!
//! A hub is asked for three things: a model's commit and file names, the hash that names a file's content, and the
//! content, which large files get by a redirect to another host. The token goes to the endpoint's own host only; it
//! does not follow a redirect elsewhere. Hashes are read from the endpoint's own answers, and only if they are plain
//! hexadecimal words ([`Hex`]), because they become file names.

use super::cache::Hex;
use super::{Hub, Id};
use serde_json::Value;
use std::fs::File;
use std::io::{Read, Write};
use std::time::Duration;
use ureq::http::{HeaderMap, Response, StatusCode, Uri};
use ureq::{Agent, Body};

/// Time limit for an answer, and for each read of a content. The client itself would wait forever.
const PATIENCE: Duration = Duration::from_secs(30);

/// Bytes of a list of files; those of the largest repositories have some megabytes.
const LONGEST_LIST: u64 = 64 << 20;

/// Redirects of one request.
const REDIRECTS: usize = 10;

/// Further attempts at a content that breaks off, with a pause that doubles each time.
const RETRIES: u32 = 3;
const PAUSE: Duration = Duration::from_millis(300);

/// The reason for a failed download, as a clause.
pub(super) type Reason = String;

/// A client of one hub.
pub(super) struct Client<'a> {
    hub: &'a Hub,
    endpoint: &'a str,
    home: Origin,
    agent: Agent,
}

/// A model's commit and the names of its files.
pub(super) struct Listing {
    pub(super) commit: Hex,
    pub(super) files: Vec<String>,
}

/// A failed request.
pub(super) struct Failure {
    /// The status of the answer, if there was one that says no.
    status: Option<StatusCode>,
    reason: Reason,
    /// True if another attempt may succeed.
    passing: bool,
}

impl Failure {
    fn lasting(reason: impl Into<Reason>) -> Self {
        Self { status: None, reason: reason.into(), passing: false }
    }

    fn passing(error: impl std::fmt::Display) -> Self {
        Self { status: None, reason: error.to_string(), passing: true }
    }

    fn status(status: StatusCode) -> Self {
        let passing = status.is_server_error() || status == StatusCode::TOO_MANY_REQUESTS;
        Self { status: Some(status), reason: format!("http status {}", status.as_u16()), passing }
    }

    /// The reason as a clause.
    pub(super) fn into_reason(self) -> Reason {
        self.reason
    }
}

impl<'a> Client<'a> {
    /// A client of the hub that the environment names.
    ///
    /// # Errors
    /// If its endpoint is not an address.
    pub(super) fn new(hub: &'a Hub) -> Result<Self, Reason> {
        let endpoint = hub.endpoint.trim_end_matches('/');
        let home = endpoint
            .parse()
            .ok()
            .and_then(|uri: Uri| Origin::of(&uri))
            .ok_or_else(|| format!("HF_ENDPOINT ({endpoint}) is not an address such as https://huggingface.co"))?;
        if hub.token.is_some() && home.is_readable_by_others() {
            tracing::warn!("HF_TOKEN goes to {endpoint} in the clear; https would hide it");
        }
        let mut agent = Agent::config_builder()
            .user_agent(concat!("proxrl/", env!("CARGO_PKG_VERSION")))
            .timeout_connect(Some(PATIENCE))
            .timeout_recv_response(Some(PATIENCE))
            .timeout_per_read(Some(PATIENCE))
            .http_status_as_error(false)
            // Followed here, so that the token stays.
            .max_redirects(0)
            .max_redirects_will_error(false);
        if home.is_loopback() {
            agent = agent.proxy(None);
        }
        Ok(Self { hub, endpoint, home, agent: agent.build().new_agent() })
    }

    /// The commit and the files of a model's revision.
    ///
    /// # Errors
    /// If the hub does not answer, refuses, has no such model, or names a commit that is not a hash.
    pub(super) fn list(&self, id: &Id) -> Result<Listing, Reason> {
        let url = format!("{}/api/models/{}/revision/{}", self.endpoint, id.repository, id.revision);
        let answer = self.get(&url, None, Follow::Anywhere).map_err(|failure| self.explain(&failure, id))?;
        let status = answer.response.status();
        if status != StatusCode::OK {
            return Err(self.explain(&Failure::status(status), id));
        }
        let body = answer.response.into_body().into_with_config().limit(LONGEST_LIST).read_to_string();
        let body = body.map_err(|error| self.explain(&Failure::passing(error), id))?;
        let list: Value = serde_json::from_str(&body)
            .map_err(|error| format!("{} lists its files in what is not JSON ({error})", self.endpoint))?;
        let commit = list.get("sha").and_then(Value::as_str).unwrap_or_default();
        let commit = Hex::parse(commit).ok_or_else(|| self.no_hash("its commit", commit))?;
        let files = list.get("siblings").and_then(Value::as_array).into_iter().flatten();
        let files = files.filter_map(|file| Some(file.get("rfilename")?.as_str()?.to_owned())).collect();
        Ok(Listing { commit, files })
    }

    /// The address of a file.
    pub(super) fn address(&self, id: &Id, commit: &Hex, file: &str) -> String {
        format!("{}/{}/resolve/{commit}/{file}", self.endpoint, id.repository)
    }

    /// The hash of a file's content: SHA-256 of a large file, git's of a small one.
    ///
    /// # Errors
    /// If the hub does not answer, refuses, or names a hash or commit that is none.
    pub(super) fn hash(&self, address: &str, commit: &Hex) -> Result<Hex, Failure> {
        // The first byte alone: only the headers matter.
        let answer = self.get(address, Some("bytes=0-0"), Follow::AtHome)?;
        let status = answer.response.status();
        // An empty file has no first byte.
        if !(status.is_success() || status.is_redirection() || status == StatusCode::RANGE_NOT_SATISFIABLE) {
            return Err(Failure::status(status));
        }
        if let Some(other) = answer.commit.filter(|other| Hex::parse(other).as_ref() != Some(commit)) {
            let other = shown(&other);
            return Err(Failure::lasting(format!("{} gives it of commit {other} instead of {commit}", self.endpoint)));
        }
        let etag = answer.linked_etag.or(answer.etag).unwrap_or_default();
        let word = etag.trim().trim_start_matches("W/").trim_matches('"');
        Hex::parse(word).ok_or_else(|| Failure::lasting(self.no_hash("its content", &etag)))
    }

    /// Appends the rest of a file's content to `file`, which holds its beginning or nothing.
    ///
    /// # Errors
    /// If the hub does not answer, refuses, or breaks off several times, or the disk is full.
    pub(super) fn fetch(&self, address: &str, file: &mut File, log: &mut Log) -> Result<(), Failure> {
        let (mut pause, mut left) = (PAUSE, RETRIES);
        loop {
            match self.fetch_rest(address, file, log) {
                Err(failure) if failure.passing && left > 0 => {
                    tracing::info!("fetching {} again: {}", log.file, failure.reason);
                    std::thread::sleep(pause);
                    (pause, left) = (pause * 2, left - 1);
                }
                result => return result,
            }
        }
    }

    fn fetch_rest(&self, address: &str, file: &mut File, log: &mut Log) -> Result<(), Failure> {
        let disk = |error: std::io::Error| Failure::lasting(format!("it cannot be written: {error}"));
        let mut done = file.metadata().map_err(disk)?.len();
        let rest = (done > 0).then(|| format!("bytes={done}-"));
        let answer = self.get(address, rest.as_deref(), Follow::Anywhere)?;
        let (status, headers) = (answer.response.status(), answer.response.headers());
        let range = header(headers, "content-range");
        let first = range.as_ref().and_then(|range| range.strip_prefix("bytes ")?.split('-').next()?.parse().ok());
        match status {
            StatusCode::PARTIAL_CONTENT if first == Some(done) => {}
            StatusCode::OK => {
                // A server that knows no ranges sends everything again.
                file.set_len(0).map_err(disk)?;
                done = 0;
            }
            StatusCode::PARTIAL_CONTENT | StatusCode::RANGE_NOT_SATISFIABLE if done > 0 => {
                file.set_len(0).map_err(disk)?;
                return Err(Failure::passing("what is here of it does not fit"));
            }
            _ => return Err(Failure::status(status)),
        }
        let rest: Option<u64> = header(headers, "content-length").and_then(|length| length.parse().ok());
        log.begin(done, rest.map(|rest| done.saturating_add(rest)));
        let mut reader = answer.response.into_body().into_reader();
        let mut buffer = vec![0; 1 << 18];
        let mut came = 0;
        loop {
            let count = match reader.read(&mut buffer) {
                Ok(0) => break,
                Ok(count) => count,
                Err(error) => return Err(Failure::passing(error)),
            };
            file.write_all(&buffer[..count]).map_err(disk)?;
            came += count as u64;
            log.advance(count as u64);
        }
        match rest {
            Some(rest) if came < rest => Err(Failure::passing("it broke off")),
            _ => Ok(()),
        }
    }

    /// Sends a request and follows redirects.
    fn get(&self, address: &str, range: Option<&str>, follow: Follow) -> Result<Answer, Failure> {
        let mut address = address.parse::<Uri>().map_err(|_| Failure::lasting(format!("{address} is no address")))?;
        let (mut at_home, mut etag, mut linked_etag, mut commit) = (true, None, None, None);
        for _ in 0..=REDIRECTS {
            // Once a redirect has left, what it comes back to is another host's choice.
            at_home = at_home && Origin::of(&address).is_some_and(|origin| self.home.trusts(&origin));
            let mut request = self.agent.get(&address).header("Accept-Encoding", "identity");
            if let Some(token) = self.hub.token.as_ref().filter(|_| at_home) {
                request = request.header("Authorization", format!("Bearer {token}"));
            }
            if let Some(range) = range {
                request = request.header("Range", range);
            }
            let response = request.call().map_err(Failure::passing)?;
            if at_home {
                let headers = response.headers();
                etag = header(headers, "etag").or(etag);
                linked_etag = header(headers, "x-linked-etag").or(linked_etag);
                commit = header(headers, "x-repo-commit").or(commit);
            }
            let location = header(response.headers(), "location").filter(|_| response.status().is_redirection());
            let Some(location) = location else { return Ok(Answer { response, etag, linked_etag, commit }) };
            let next = redirected(&address, &location).ok_or_else(|| {
                Failure::lasting(format!("a redirect leads to {}, which is no address", shown(&location)))
            })?;
            let (from, to) = (Origin::of(&address), Origin::of(&next));
            if from.is_some_and(|from| from.secure) && to.as_ref().is_none_or(|to| !to.secure) {
                return Err(Failure::lasting("a redirect leads from https to http"));
            }
            if follow == Follow::AtHome && !to.is_some_and(|to| self.home.trusts(&to)) {
                return Ok(Answer { response, etag, linked_etag, commit });
            }
            address = next;
        }
        Err(Failure::lasting(format!("more than {REDIRECTS} redirects")))
    }

    fn explain(&self, failure: &Failure, id: &Id) -> Reason {
        let repository = &id.repository;
        match failure.status.map(|status| status.as_u16()) {
            Some(401 | 403) => {
                let token = if self.hub.token.is_some() { "HF_TOKEN may not read it" } else { "it may need HF_TOKEN" };
                format!("{} refuses `{repository}` (no such model, or {token})", self.endpoint)
            }
            Some(404) => format!("{} has no such model or revision", self.endpoint),
            _ => format!("{} cannot be reached ({})", self.endpoint, failure.reason),
        }
    }

    fn no_hash(&self, what: &str, word: &str) -> Reason {
        format!("{} names {what} by {}, which is no hash; is it a hub?", self.endpoint, shown(word))
    }
}

/// The hosts to which redirects are followed.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Follow {
    /// To any host.
    Anywhere,
    /// Within the endpoint's host; the first answer that leads elsewhere is the last.
    AtHome,
}

/// The last answer to a request, with what the endpoint's own answers said of the content.
struct Answer {
    response: Response<Body>,
    etag: Option<String>,
    linked_etag: Option<String>,
    commit: Option<String>,
}

/// The server behind an address.
#[derive(Debug, PartialEq, Eq)]
struct Origin {
    secure: bool,
    host: String,
    port: u16,
}

impl Origin {
    fn of(uri: &Uri) -> Option<Self> {
        let secure = match uri.scheme_str()? {
            "https" => true,
            "http" => false,
            _ => return None,
        };
        let port = uri.port_u16().unwrap_or(if secure { 443 } else { 80 });
        Some(Self { secure, host: uri.host()?.to_ascii_lowercase(), port })
    }

    /// True if what this server may know, the other may: it is the same, or the same host by https instead of http.
    fn trusts(&self, other: &Self) -> bool {
        let upgraded = (self.secure, self.port, other.secure, other.port) == (false, 80, true, 443);
        self == other || (self.host == other.host && upgraded)
    }

    fn is_loopback(&self) -> bool {
        let ip = self.host.trim_start_matches('[').trim_end_matches(']');
        ip == "localhost" || ip.parse().is_ok_and(|ip: std::net::IpAddr| ip.is_loopback())
    }

    /// True if others on the way can read a request.
    fn is_readable_by_others(&self) -> bool {
        !self.secure && !self.is_loopback()
    }
}

/// The address that a redirect from `address` leads to.
fn redirected(address: &Uri, location: &str) -> Option<Uri> {
    let (scheme, host) = (address.scheme_str()?, address.authority()?);
    let absolute = if location.starts_with("//") {
        format!("{scheme}:{location}")
    } else if location.starts_with('/') {
        format!("{scheme}://{host}{location}")
    } else {
        location.to_owned()
    };
    absolute.parse().ok().filter(|uri| Origin::of(uri).is_some())
}

fn header(headers: &HeaderMap, name: &str) -> Option<String> {
    Some(headers.get(name)?.to_str().ok()?.trim().to_owned())
}

/// Text of a server, short enough for a message and without control characters.
fn shown(text: &str) -> String {
    const LONGEST: usize = 80;
    let mark = if text.chars().count() > LONGEST { "…" } else { "" };
    format!("`{}{mark}`", text.chars().take(LONGEST).collect::<String>().escape_debug())
}

/// Progress as log lines, one for each tenth of a file.
pub(super) struct Log {
    file: String,
    size: Option<u64>,
    done: u64,
    begun: bool,
}

impl Log {
    /// The log of one file's download.
    pub(super) fn new(file: &str) -> Self {
        Self { file: file.to_owned(), size: None, done: 0, begun: false }
    }

    fn begin(&mut self, done: u64, size: Option<u64>) {
        if !self.begun {
            let size = size.map_or_else(String::new, |size| format!(" ({:.1} MB)", size as f64 / 1e6));
            tracing::info!("fetching {}{size}", self.file);
        }
        (self.done, self.size, self.begun) = (done, size, true);
    }

    fn advance(&mut self, bytes: u64) {
        let Some(size) = self.size.filter(|size| *size > 0) else { return };
        let tenth = |done: u64| done.saturating_mul(10) / size;
        if tenth(self.done + bytes) > tenth(self.done) {
            tracing::info!("fetching {}: {} %", self.file, 10 * tenth(self.done + bytes));
        }
        self.done += bytes;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn origin(address: &str) -> Origin {
        Origin::of(&address.parse().unwrap()).unwrap()
    }

    #[test]
    fn the_token_stays_with_its_host() {
        let check = |home: &str, other: &str| origin(home).trusts(&origin(other));
        assert!(check("https://hub.example/a", "https://HUB.example:443/b"));
        assert!(check("http://hub.example", "https://hub.example"), "https hides more than http");
        for other in [
            "http://hub.example",
            "https://hub.example:8443",
            "https://cdn.hub.example",
            "https://hub.example.net",
            "https://hub.example@elsewhere.example",
        ] {
            assert!(!check("https://hub.example", other), "{other}");
        }
    }

    #[test]
    fn a_token_over_http_is_seen_by_others_unless_it_stays_here() {
        for (address, readable) in [
            ("http://mirror.example", true),
            ("http://10.0.0.1:8080/hub", true),
            ("https://mirror.example", false),
            ("http://localhost:8080", false),
            ("http://127.1.2.3", false),
            ("http://[::1]:80", false),
        ] {
            assert_eq!(origin(address).is_readable_by_others(), readable, "{address}");
        }
    }

    #[test]
    fn a_redirect_is_read_against_the_address_that_gave_it() {
        let from: Uri = "https://hub.example/a/b?c".parse().unwrap();
        let to = |location: &str| redirected(&from, location).map(|uri| uri.to_string());
        assert_eq!(to("/d?e").unwrap(), "https://hub.example/d?e");
        assert_eq!(to("//cdn.example/d").unwrap(), "https://cdn.example/d");
        assert_eq!(to("http://cdn.example/d").unwrap(), "http://cdn.example/d");
        for location in ["file:///etc/passwd", "ftp://a/b", "", "b"] {
            assert_eq!(to(location), None, "{location}");
        }
    }
}
