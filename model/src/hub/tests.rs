//! The order of lookup, and the message when nothing is found.

use super::*;
use std::fs;

fn id(repository: &str, file: Option<&str>, revision: &str) -> Id {
    Id { repository: repository.into(), file: file.map(Into::into), revision: revision.into() }
}

#[test]
fn hub_ids_are_told_from_paths() {
    assert_eq!(Id::parse("owner/name-1.5"), Some(id("owner/name-1.5", None, "main")));
    assert_eq!(Id::parse("owner/name@v1.0"), Some(id("owner/name", None, "v1.0")));
    assert_eq!(Id::parse("owner/name/model.Q4_1.gguf"), Some(id("owner/name", Some("model.Q4_1.gguf"), "main")));
    for path in ["name", "/a/b", "./a", "../a", "a/", "a/b/c", "a/b c", "~/a", "a/b@", "a/b@../c", "a//b"] {
        assert_eq!(Id::parse(path), None, "{path}");
    }
}

/// A models folder and a hub's cache of a test's own, with a hub that is offline.
struct Site {
    folder: tempfile::TempDir,
    hub: Hub,
}

impl Site {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let cache = folder.path().join("hub");
        let hub = Hub { cache, endpoint: "http://127.0.0.1:9".into(), token: None, offline: true };
        Self { folder, hub }
    }

    fn models(&self) -> PathBuf {
        self.folder.path().join("models")
    }

    fn write(&self, name: &str, text: &str) {
        let path = self.folder.path().join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }

    fn resolve(&self, path: &str) -> Result<PathBuf> {
        resolve_with(path, &self.models(), &self.hub)
    }

    fn error(&self, path: &str) -> String {
        let error = self.resolve(path).unwrap_err();
        assert!(error.is_input());
        error.to_string()
    }
}

#[test]
fn paths_come_first_then_our_models() {
    let site = Site::new();
    let own = env!("CARGO_MANIFEST_DIR");
    assert_eq!(site.resolve(own).unwrap(), Path::new(own));
    site.write("models/tiny.gguf", "");
    assert_eq!(site.resolve("tiny.gguf").unwrap(), site.models().join("tiny.gguf"));
    assert_eq!(site.resolve("~/").unwrap(), std::env::home_dir().unwrap());
    let error = site.error("nothing.gguf");
    assert!(error.starts_with("model `nothing.gguf` is neither a path here nor a name in "), "{error}");
    assert!(error.contains("hub id such as owner/name"), "{error}");
}

#[test]
fn the_hubs_cache_is_used_when_it_is_whole() {
    let site = Site::new();
    let folder = "hub/models--owner--name";
    site.write(&format!("{folder}/refs/main"), "abc\n");
    site.write(&format!("{folder}/snapshots/abc/config.json"), "{}");
    assert!(site.error("owner/name").contains("HF_HUB_OFFLINE forbids"));

    let index = r#"{"weight_map": {"a": "1.safetensors", "b": "2.safetensors", "c": "1.safetensors"}}"#;
    site.write(&format!("{folder}/snapshots/abc/model.safetensors.index.json"), index);
    site.write(&format!("{folder}/snapshots/abc/1.safetensors"), "");
    assert!(site.resolve("owner/name").is_err(), "one of two shards is missing");
    site.write(&format!("{folder}/snapshots/abc/2.safetensors"), "");
    let whole = site.folder.path().join(folder).join("snapshots/abc");
    assert_eq!(site.resolve("owner/name").unwrap(), whole);
    assert_eq!(site.resolve("owner/name@abc").unwrap(), whole, "a commit names itself");
    assert!(site.resolve("owner/name@v2").is_err());

    assert!(site.resolve("owner/name/q.gguf").is_err());
    site.write(&format!("{folder}/snapshots/abc/q.gguf"), "");
    assert_eq!(site.resolve("owner/name/q.gguf").unwrap(), whole.join("q.gguf"));
}

#[test]
fn offline_the_error_says_what_was_tried() {
    let site = Site::new();
    let error = site.error("owner/name");
    let folders = [site.models(), site.hub.cache.clone()].map(|path| path.display().to_string());
    for part in ["model `owner/name`", &folders[0], &folders[1], "HF_HUB_OFFLINE", "give its folder"] {
        assert!(error.contains(part), "{part} in {error}");
    }
}

#[cfg(feature = "hub")]
mod network {
    use super::*;
    use std::io::{BufRead, BufReader, Write};
    use std::net::{TcpListener, TcpStream};
    use std::sync::{Arc, Mutex};

    /// A hub on the loopback device: files of one model, served as the real one serves them.
    struct Server {
        endpoint: String,
        requests: Arc<Mutex<Vec<String>>>,
    }

    impl Server {
        fn start(files: &'static [(&'static str, &'static str)]) -> Self {
            let listener = TcpListener::bind("127.0.0.1:0").unwrap();
            let endpoint = format!("http://{}", listener.local_addr().unwrap());
            let requests = Arc::new(Mutex::new(Vec::new()));
            let log = requests.clone();
            std::thread::spawn(move || {
                for stream in listener.incoming() {
                    answer(stream.unwrap(), files, &log);
                }
            });
            Self { endpoint, requests }
        }
    }

    fn answer(mut stream: TcpStream, files: &[(&str, &str)], log: &Mutex<Vec<String>>) {
        let lines: Vec<String> = BufReader::new(&stream)
            .lines()
            .map_while(std::io::Result::ok)
            .take_while(|line| !line.is_empty())
            .collect();
        log.lock().unwrap().push(lines.join("\n"));
        let target = lines[0].split(' ').nth(1).unwrap();
        let header = |name: &str| {
            lines.iter().find_map(|line| line.to_lowercase().strip_prefix(name).map(|value| value.trim().to_owned()))
        };
        let reply = if target == "/api/models/owner/name/revision/main" {
            let names: Vec<_> = files.iter().map(|(name, _)| format!(r#"{{"rfilename": "{name}"}}"#)).collect();
            let body = format!(r#"{{"sha": "abc", "siblings": [{}]}}"#, names.join(", "));
            format!("200 OK\r\nContent-Length: {}\r\n\r\n{body}", body.len())
        } else if header("authorization:").as_deref() != Some("bearer secret") {
            "401 Unauthorized\r\nContent-Length: 0\r\n\r\n".into()
        } else {
            let file = target.strip_prefix("/owner/name/resolve/main/");
            match files.iter().find(|(name, _)| Some(*name) == file) {
                None => "404 Not Found\r\nContent-Length: 0\r\n\r\n".into(),
                Some((name, text)) => {
                    let range = header("range: bytes=").unwrap();
                    let (from, to) = range.split_once('-').unwrap();
                    let from: usize = from.parse().unwrap();
                    let to = to.parse().map_or(text.len(), |last: usize| last + 1);
                    format!(
                        "206 Partial Content\r\nContent-Length: {}\r\nContent-Range: bytes {from}-{}/{}\r\n\
                         ETag: \"etag-{name}\"\r\nX-Repo-Commit: abc\r\n\r\n{}",
                        to - from,
                        to - 1,
                        text.len(),
                        &text[from..to]
                    )
                }
            }
        };
        let reply = format!("HTTP/1.1 {}", reply.replacen("\r\n", "\r\nConnection: close\r\n", 1));
        stream.write_all(reply.as_bytes()).unwrap();
    }

    fn online(server: &Server) -> Site {
        let mut site = Site::new();
        site.hub.endpoint.clone_from(&server.endpoint);
        site.hub.token = Some("secret".into());
        site.hub.offline = false;
        site
    }

    const INDEX: &str = r#"{"weight_map": {"a": "m-1.safetensors", "b": "m-2.safetensors"}}"#;
    const MODEL: &[(&str, &str)] = &[
        ("README.md", "no"),
        ("config.json", "{}"),
        ("tokenizer.json", "{\"t\": 1}"),
        ("model.safetensors.index.json", INDEX),
        ("m-1.safetensors", "first shard"),
        ("m-2.safetensors", "second shard"),
    ];

    #[test]
    fn a_model_is_fetched_once() {
        let server = Server::start(MODEL);
        let site = online(&server);
        let folder = site.resolve("owner/name").unwrap();
        assert_eq!(folder, site.hub.cache.join("models--owner--name/snapshots/abc"));
        for (name, text) in &MODEL[1..] {
            assert_eq!(fs::read_to_string(folder.join(name)).unwrap(), *text);
        }
        assert!(!folder.join("README.md").exists(), "only what a model needs");
        let asked = server.requests.lock().unwrap().len();
        assert_eq!(site.resolve("owner/name").unwrap(), folder);
        assert_eq!(server.requests.lock().unwrap().len(), asked, "the second time, no request is made");
    }

    #[test]
    fn a_download_that_was_cut_off_goes_on() {
        let server = Server::start(MODEL);
        let site = online(&server);
        let folder = site.resolve("owner/name").unwrap();
        fs::remove_file(folder.join("m-2.safetensors")).unwrap();
        let blobs = site.hub.cache.join("models--owner--name/blobs");
        fs::remove_file(blobs.join("etag-m-2.safetensors")).unwrap();
        fs::write(blobs.join("etag-m-2.part"), "second").unwrap();
        server.requests.lock().unwrap().clear();
        site.resolve("owner/name").unwrap();
        assert_eq!(fs::read_to_string(folder.join("m-2.safetensors")).unwrap(), "second shard");
        let requests = server.requests.lock().unwrap();
        assert!(requests.iter().any(|request| request.to_lowercase().contains("range: bytes=6-")), "{requests:?}");
        assert!(!requests.iter().any(|request| request.contains("m-1.safetensors")), "{requests:?}");
    }

    #[test]
    fn one_file_of_a_collection_is_fetched_by_name() {
        let server = Server::start(&[("a.gguf", "GGUF a"), ("b.gguf", "GGUF b")]);
        let site = online(&server);
        let error = site.error("owner/name");
        assert!(error.contains("GGUF files, of which the path must name one: a.gguf, b.gguf"), "{error}");
        let file = site.resolve("owner/name/b.gguf").unwrap();
        assert_eq!(fs::read_to_string(file).unwrap(), "GGUF b");
        assert!(site.error("owner/name/c.gguf").contains("has no file c.gguf"));
    }

    #[test]
    fn a_refusal_names_the_token() {
        let server = Server::start(MODEL);
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
    }
}
