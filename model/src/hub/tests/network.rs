//! Downloads from a hub on the loopback device, well-behaved and not.

use super::*;
use sha2::{Digest, Sha256};
use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, Mutex};

struct Request {
    target: String,
    headers: BTreeMap<String, String>,
}

#[derive(Default)]
struct Reply {
    status: u16,
    headers: Vec<(&'static str, String)>,
    body: String,
}

impl Reply {
    fn with(mut self, name: &'static str, value: impl Into<String>) -> Self {
        self.headers.retain(|(known, _)| *known != name);
        self.headers.push((name, value.into()));
        self
    }
}

/// A server that answers as its function says, and its requests.
struct Server {
    endpoint: String,
    requests: Arc<Mutex<Vec<Request>>>,
}

impl Server {
    fn start(answer: impl Fn(&Request) -> Reply + Send + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let endpoint = format!("http://{}", listener.local_addr().unwrap());
        let requests = Arc::new(Mutex::new(Vec::new()));
        let log = requests.clone();
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let mut stream = stream.unwrap();
                let request = read(&stream);
                let Reply { status, headers, body } = answer(&request);
                log.lock().unwrap().push(request);
                let mut reply = format!("HTTP/1.1 {status} x\r\nConnection: close\r\n");
                for (name, value) in headers {
                    reply.extend([name, ": ", &value, "\r\n"]);
                }
                if !reply.contains("Content-Length") {
                    reply.extend(["Content-Length: ", &body.len().to_string(), "\r\n"]);
                }
                // The client may have heard enough.
                let _ = stream.write_all(format!("{reply}\r\n{body}").as_bytes());
            }
        });
        Self { endpoint, requests }
    }

    fn targets(&self) -> Vec<String> {
        self.requests.lock().unwrap().iter().map(|request| request.target.clone()).collect()
    }
}

fn read(stream: &TcpStream) -> Request {
    let lines: Vec<String> =
        BufReader::new(stream).lines().map_while(std::io::Result::ok).take_while(|line| !line.is_empty()).collect();
    let headers = lines[1..].iter().filter_map(|line| {
        let (name, value) = line.split_once(':')?;
        Some((name.to_lowercase(), value.trim().to_owned()))
    });
    Request { target: lines[0].split(' ').nth(1).unwrap().to_owned(), headers: headers.collect() }
}

const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";

fn sha256(text: &str) -> String {
    schema::hex(&Sha256::digest(text))
}

/// The hash that names a content: SHA-256 of weights, another one of small files.
fn hash(name: &str, text: &str) -> String {
    let sha = sha256(text);
    if name.ends_with("safetensors") { sha } else { sha[..40].to_owned() }
}

fn list(names: &[&str]) -> Reply {
    let names: Vec<_> = names.iter().map(|name| serde_json::json!({ "rfilename": name })).collect();
    let body = serde_json::json!({ "sha": COMMIT, "siblings": names }).to_string();
    Reply { status: 200, body, ..Reply::default() }
}

/// A content, or the part of it that is asked for.
fn content(text: &str, request: &Request) -> Reply {
    let Some(range) = request.headers.get("range") else {
        return Reply { status: 200, body: text.into(), ..Reply::default() };
    };
    let (from, to) = range.strip_prefix("bytes=").unwrap().split_once('-').unwrap();
    let from: usize = from.parse().unwrap();
    if from >= text.len() {
        return Reply { status: 416, ..Reply::default() };
    }
    let to = to.parse().map_or(text.len(), |last: usize| last + 1);
    Reply { status: 206, body: text[from..to].into(), ..Reply::default() }
        .with("Content-Range", format!("bytes {from}-{}/{}", to - 1, text.len()))
}

type Files = &'static [(&'static str, &'static str)];

/// Answers as the real hub does: weights by a redirect, files for those with the token `secret` alone.
fn hub(files: Files, request: &Request) -> Reply {
    if request.target == "/api/models/owner/name/revision/main" {
        return list(&files.iter().map(|(name, _)| *name).collect::<Vec<_>>());
    }
    if request.target.contains("/closed/") {
        return Reply { status: 401, ..Reply::default() };
    }
    let Some(name) = request
        .target
        .rsplit_once('/')
        .filter(|(folder, _)| *folder == format!("/owner/name/resolve/{COMMIT}") || *folder == "/large")
    else {
        return Reply { status: 404, ..Reply::default() };
    };
    let Some((name, text)) = files.iter().find(|(known, _)| *known == name.1) else {
        return Reply { status: 404, ..Reply::default() };
    };
    if request.headers.get("authorization").map(String::as_str) != Some("Bearer secret") {
        return Reply { status: 401, ..Reply::default() };
    }
    let hash = format!("\"{}\"", hash(name, text));
    if name.ends_with("safetensors") && !request.target.starts_with("/large") {
        return Reply { status: 302, ..Reply::default() }
            .with("Location", format!("/large/{name}"))
            .with("ETag", "\"of the redirect\"")
            .with("X-Linked-ETag", hash)
            .with("X-Repo-Commit", COMMIT);
    }
    content(text, request).with("ETag", format!("W/{hash}")).with("X-Repo-Commit", COMMIT)
}

fn online(server: &Server) -> Site {
    let mut site = Site::new();
    site.hub.endpoint.clone_from(&server.endpoint);
    site.hub.token = Some("secret".into());
    site.hub.offline = false;
    site
}

const INDEX: &str = r#"{"weight_map": {"a": "m-1.safetensors", "b": "m-2.safetensors"}}"#;
const MODEL: Files = &[
    ("README.md", "no"),
    ("config.json", "{}"),
    ("tokenizer.json", "{\"t\": 1}"),
    ("chat_template.jinja", ""),
    ("model.safetensors.index.json", INDEX),
    ("m-1.safetensors", "first shard"),
    ("m-2.safetensors", "second shard"),
];

#[test]
fn a_model_is_fetched_once() {
    let server = Server::start(|request| hub(MODEL, request));
    let site = online(&server);
    let folder = site.resolve("owner/name").unwrap();
    let repository = site.hub.cache.join("models--owner--name");
    assert_eq!(folder, repository.join("snapshots").join(COMMIT));
    for (name, text) in &MODEL[1..] {
        assert_eq!(fs::read_to_string(folder.join(name)).unwrap(), *text);
        let link = Path::new("../../blobs").join(hash(name, text));
        assert_eq!(fs::read_link(folder.join(name)).unwrap(), link, "as Python's client has it");
    }
    assert_eq!(fs::read_to_string(repository.join("refs/main")).unwrap(), COMMIT);
    assert!(!folder.join("README.md").exists(), "only what a model needs");
    let asked = server.targets().len();
    assert_eq!(site.resolve("owner/name").unwrap(), folder);
    assert_eq!(server.targets().len(), asked, "the second time, no request is made");
}

#[test]
fn a_download_that_was_cut_off_goes_on() {
    let server = Server::start(|request| hub(MODEL, request));
    let site = online(&server);
    let folder = site.resolve("owner/name").unwrap();
    let blobs = site.hub.cache.join("models--owner--name/blobs");
    let second = sha256("second shard");
    for here in ["second", "second shard", "something longer than it"] {
        fs::remove_file(folder.join("m-2.safetensors")).unwrap();
        fs::remove_file(blobs.join(&second)).unwrap();
        fs::write(blobs.join(format!("{second}.part")), here).unwrap();
        server.requests.lock().unwrap().clear();
        site.resolve("owner/name").unwrap();
        assert_eq!(fs::read_to_string(folder.join("m-2.safetensors")).unwrap(), "second shard");
        let requests = server.requests.lock().unwrap();
        let range = format!("bytes={}-", here.len());
        assert!(requests.iter().any(|request| request.headers.get("range") == Some(&range)), "{here}");
        assert!(!requests.iter().any(|request| request.target.contains("m-1.safetensors")));
    }
}

#[test]
fn a_server_without_ranges_sends_everything_again() {
    let server = Server::start(|request| {
        let whole = Request { target: request.target.clone(), headers: request.headers.clone() };
        let headers = whole.headers.into_iter().filter(|(name, _)| name != "range").collect();
        hub(MODEL, &Request { headers, ..whole })
    });
    let site = online(&server);
    let blobs = site.hub.cache.join("models--owner--name/blobs");
    fs::create_dir_all(&blobs).unwrap();
    fs::write(blobs.join(format!("{}.part", sha256("first shard"))), "first").unwrap();
    let folder = site.resolve("owner/name").unwrap();
    assert_eq!(fs::read_to_string(folder.join("m-1.safetensors")).unwrap(), "first shard");
}

#[test]
fn a_connection_that_breaks_is_made_again() {
    let broken = Mutex::new(0);
    let server = Server::start(move |request| {
        let reply = hub(MODEL, request);
        let mut broken = broken.lock().unwrap();
        let asks_for_headers = request.headers.get("range").is_some_and(|range| range == "bytes=0-0");
        if request.target != "/large/m-1.safetensors" || asks_for_headers || *broken == 2 {
            return reply;
        }
        *broken += 1;
        let length = reply.body.len().to_string();
        Reply { body: reply.body[..2].into(), ..reply }.with("Content-Length", length)
    });
    online(&server).resolve("owner/name").unwrap();
    let parts = server.requests.lock().unwrap();
    let parts = parts.iter().filter(|one| one.target.contains("large/m-1")).map(|one| one.headers.get("range"));
    // The first asks for the headers alone.
    assert_eq!(parts.skip(1).collect::<Vec<_>>(), [None, Some(&"bytes=2-".to_owned()), Some(&"bytes=4-".to_owned())]);
}

#[test]
fn one_file_of_a_collection_is_fetched_by_name() {
    let server = Server::start(|request| hub(&[("a.gguf", "GGUF a"), ("b.gguf", "GGUF b")], request));
    let site = online(&server);
    let error = site.error("owner/name");
    assert!(error.contains("GGUF files, of which the path must name one: a.gguf, b.gguf"), "{error}");
    let file = site.resolve("owner/name/b.gguf").unwrap();
    assert_eq!(fs::read_to_string(file).unwrap(), "GGUF b");
    assert!(site.error("owner/name/c.gguf").contains("has no file c.gguf"));
}

#[test]
fn a_refusal_names_the_token() {
    let server = Server::start(|request| hub(MODEL, request));
    let mut site = online(&server);
    site.hub.token = None;
    let error = site.error("owner/name");
    assert!(error.contains("config.json did not come through") && error.contains("401"), "{error}");
    assert!(site.error("closed/name").contains("refuses `closed/name` (no such model, or it may need HF_TOKEN)"));
    site.hub.token = Some("secret".into());
    assert!(site.error("owner/other").contains("has no such model or revision"));
}

#[test]
fn without_a_network_the_error_is_one_sentence() {
    let mut site = Site::new();
    site.hub.offline = false;
    // Nothing listens on the discard port.
    let error = site.error("owner/name");
    assert!(error.contains("http://127.0.0.1:9 cannot be reached"), "{error}");
    assert!(error.contains("give its folder as the path") && !error.contains('\n'), "{error}");
    site.hub.endpoint = "the mirror".into();
    assert!(site.error("owner/name").contains("HF_ENDPOINT (the mirror) is not an address"));
}

/// Every file and link below a folder.
fn below(folder: &Path) -> Vec<String> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).into_iter().flatten() {
        let path = entry.unwrap().path();
        if path.is_dir() && !path.is_symlink() {
            found.extend(below(&path));
        } else {
            found.push(path.display().to_string());
        }
    }
    found
}

/// Each server answers with a name of its choice in one place; `victim` is a file of the user beside the cache.
#[test]
fn no_answer_names_a_file_outside_the_cache() {
    type Attack = fn(Reply, &str) -> Reply;
    let attacks: [(&str, Attack); 6] = [
        ("its content", |reply, name| reply.with("ETag", format!("\"{name}\"")).with("X-Linked-ETag", name)),
        ("its content", |reply, name| reply.with("X-Linked-ETag", name)),
        ("of commit", |reply, name| reply.with("X-Repo-Commit", name)),
        ("its commit", |reply, name| Reply { body: reply.body.replace(COMMIT, name), ..reply }),
        ("has no file", |reply, name| Reply { body: reply.body.replace("m-1.safetensors", name), ..reply }),
        ("plain file name|has no file", |reply, name| {
            let whole = MODEL[4].1;
            Reply { body: reply.body.replace(whole, &whole.replace("m-1.safetensors", name)), ..reply }
        }),
    ];
    for (index, (sentence, attack)) in attacks.into_iter().enumerate() {
        for relative in [false, true] {
            let outside = tempfile::tempdir().unwrap();
            let victim = outside.path().join("victim");
            fs::write(&victim, "precious").unwrap();
            let name = if relative { "../../../../victim".to_owned() } else { victim.display().to_string() };
            let server = Server::start(move |request| {
                // The length of a body is that of the changed one.
                let reply = hub(MODEL, &Request { target: request.target.clone(), headers: request.headers.clone() });
                let listed = request.target.starts_with("/api");
                if (listed && (3..5).contains(&index)) || (!listed && !(3..5).contains(&index)) {
                    return attack(reply, &name);
                }
                reply
            });
            let mut site = online(&server);
            site.hub.cache = outside.path().join("a/b/hub");
            let error = site.error("owner/name");
            assert!(sentence.split('|').any(|part| error.contains(part)), "{index}: {error}");
            assert!(!error.contains('\n'), "{error}");
            assert_eq!(fs::read_to_string(&victim).unwrap(), "precious", "{error}");
            let inside = site.hub.cache.join("models--owner--name").display().to_string();
            let strays = below(outside.path()).into_iter().filter(|file| !file.starts_with(&inside));
            assert_eq!(strays.collect::<Vec<_>>(), [victim.display().to_string()], "{error}");
        }
    }
}

#[test]
fn a_content_is_held_against_its_hash() {
    let server = Server::start(|request| {
        let reply = hub(MODEL, request);
        Reply { body: reply.body.replace("second", "sexond"), ..reply }
    });
    let site = online(&server);
    let error = site.error("owner/name");
    let (found, named) = (sha256("sexond shard"), sha256("second shard"));
    assert!(error.contains("m-2.safetensors did not come through"), "{error}");
    assert!(error.contains(&format!("its SHA-256 is {found}, but the hub names {named}; try again")), "{error}");
    let kept = below(&site.hub.cache);
    assert!(!kept.iter().any(|file| file.contains("m-2.safetensors") || file.contains(&format!("{named}.part"))));

    let whole = Server::start(|request| hub(MODEL, request));
    let again = Hub { endpoint: whole.endpoint.clone(), cache: site.hub.cache.clone(), ..online(&whole).hub };
    let folder = resolve_with("owner/name", &site.models(), &again).unwrap();
    assert_eq!(fs::read_to_string(folder.join("m-2.safetensors")).unwrap(), "second shard");
}

#[test]
fn the_token_does_not_follow_a_redirect_to_another_host() {
    let other = Server::start(|request| {
        content(MODEL.iter().find(|(name, _)| request.target.ends_with(name)).unwrap().1, request)
    });
    let elsewhere = other.endpoint.clone();
    let server = Server::start(move |request| {
        let reply = hub(MODEL, request);
        let name = request.target.rsplit('/').next().unwrap();
        if !name.ends_with("safetensors") {
            return reply;
        }
        reply.with("Location", format!("{elsewhere}/{name}"))
    });
    let site = online(&server);
    let folder = site.resolve("owner/name").unwrap();
    assert_eq!(fs::read_dir(folder).unwrap().count(), MODEL.len() - 1);
    let sent = other.requests.lock().unwrap();
    assert_eq!(sent.len(), 2, "once for each shard: hashes come from the endpoint");
    assert!(sent.iter().all(|request| !request.headers.contains_key("authorization")));
    let asked = server.requests.lock().unwrap();
    assert!(asked.iter().all(|request| request.headers["authorization"] == "Bearer secret"));
}

#[test]
fn redirects_come_to_an_end() {
    let server = Server::start(|request| {
        if request.target.starts_with("/api") {
            return hub(MODEL, request);
        }
        Reply { status: 302, ..Reply::default() }.with("Location", request.target.clone())
    });
    let error = online(&server).error("owner/name");
    assert!(error.contains("more than 10 redirects"), "{error}");
}
