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
mod network;
