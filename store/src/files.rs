//! Files at a URL: a folder of this machine, or a bucket of S3, Google Cloud or Azure that other machines see too.
//!
//! What goes there is small and read whole: adapters and checkpoints. Who may read and write is told by the environment
//! variables that the providers' own tools read: `AWS_…`, `GOOGLE_…` and `AZURE_…`.

use crate::{Error, Result};
use object_store::local::LocalFileSystem;
use object_store::path::Path;
use object_store::{ObjectStore, ObjectStoreExt, PutPayload};
use tokio::runtime::{self, Runtime};
use url::Url;

/// A folder at a URL.
///
/// Calls block, and must not come from inside an asynchronous runtime. Names are relative to the folder, with `/` between
/// their parts.
#[derive(Debug)]
pub struct Files {
    url: String,
    root: Path,
    bucket: Box<dyn ObjectStore>,
    runtime: Runtime,
}

const KINDS: &str = "write file:///FOLDER, s3://BUCKET/FOLDER, gs://BUCKET/FOLDER or az://CONTAINER/FOLDER, and log in by AWS_…, GOOGLE_… or AZURE_… in the environment";

impl Files {
    /// Whether this names files at a URL, and not a path.
    pub fn is_url(place: &str) -> bool {
        place.split_once("://").is_some_and(|(scheme, _)| {
            !scheme.is_empty() && scheme.chars().all(|letter| letter.is_ascii_alphanumeric())
        })
    }

    /// The folder at this URL. Nothing is read yet, and the folder need not be there.
    ///
    /// # Errors
    /// [`Error::Url`] where the URL is none, or names no kind of storage that is known.
    pub fn open(url: &str) -> Result<Self> {
        let problem =
            |reason: &dyn std::fmt::Display| Error::Url { url: url.to_owned(), reason: format!("{reason}; {KINDS}") };
        let parsed = Url::parse(url).map_err(|error| problem(&error))?;
        // Only theirs: some of their keys are as short as `token`.
        let own = |name: &str| ["AWS_", "GOOGLE_", "AZURE_"].iter().any(|prefix| name.starts_with(prefix));
        let variables = std::env::vars_os()
            .filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)))
            .filter(|(name, _)| own(name));
        // Every provider removes single files; several at once only some.
        let options = std::iter::once(("aws_disable_bulk_delete".to_owned(), "true".to_owned())).chain(variables);
        // Whoever was first is as good.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let (mut bucket, root) = object_store::parse_url_opts(&parsed, options).map_err(|error| problem(&error))?;
        if parsed.scheme() == "file" {
            // A bucket has no empty folders, and here there shall be none either.
            bucket = Box::new(LocalFileSystem::new().with_automatic_cleanup(true));
        }
        let runtime = runtime::Builder::new_current_thread().enable_all().build().map_err(Error::Start)?;
        Ok(Self { url: url.trim_end_matches('/').to_owned(), root, bucket, runtime })
    }

    /// The URL of one of the files.
    pub fn url_of(&self, name: &str) -> String {
        format!("{}/{name}", self.url)
    }

    fn place(&self, name: &str) -> Path {
        name.split('/').fold(self.root.clone(), Path::join)
    }

    fn failed(&self, doing: &'static str, name: &str, error: &object_store::Error) -> Error {
        Error::Files { doing, url: self.url_of(name), reason: error.to_string() }
    }

    /// Writes a file, whole or not at all.
    pub fn write(&self, name: &str, bytes: Vec<u8>) -> Result<()> {
        let written = self.runtime.block_on(self.bucket.put(&self.place(name), PutPayload::from(bytes)));
        written.map(drop).map_err(|error| self.failed("write", name, &error))
    }

    /// A file's content; nothing if there is no such file.
    pub fn read(&self, name: &str) -> Result<Option<Vec<u8>>> {
        let place = self.place(name);
        let read = self.runtime.block_on(async { self.bucket.get(&place).await?.bytes().await });
        match read {
            Ok(bytes) => Ok(Some(bytes.into())),
            Err(object_store::Error::NotFound { .. }) => Ok(None),
            Err(error) => Err(self.failed("read", name, &error)),
        }
    }

    /// The names of the files and folders right below a folder, without its own name; none if it is not there.
    pub fn list(&self, folder: &str) -> Result<Vec<String>> {
        let listed = self.runtime.block_on(self.bucket.list_with_delimiter(Some(&self.place(folder))));
        let listed = listed.map_err(|error| self.failed("list", folder, &error))?;
        let files = listed.objects.iter().map(|file| &file.location);
        Ok(files.chain(&listed.common_prefixes).filter_map(|path| path.filename().map(str::to_owned)).collect())
    }

    /// Removes a file, if it is there.
    pub fn remove(&self, name: &str) -> Result<()> {
        match self.runtime.block_on(self.bucket.delete(&self.place(name))) {
            Ok(()) | Err(object_store::Error::NotFound { .. }) => Ok(()),
            Err(error) => Err(self.failed("remove", name, &error)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_of_this_machine_keeps_files() {
        let folder = tempfile::tempdir().unwrap();
        let files = Files::open(&format!("file://{}/a b/", folder.path().display())).unwrap();
        assert_eq!(files.list("").unwrap(), Vec::<String>::new());
        assert_eq!(files.read("run/x").unwrap(), None);
        files.write("run/x", vec![1, 2]).unwrap();
        files.write("run/deep/y", vec![]).unwrap();
        files.write("run/x", vec![3]).unwrap();
        assert_eq!(files.read("run/x").unwrap(), Some(vec![3]));
        let mut names = files.list("run").unwrap();
        names.sort();
        assert_eq!(names, ["deep", "x"]);
        assert!(files.url_of("run/x").ends_with("/a b/run/x"));
        assert_eq!(std::fs::read(folder.path().join("a b/run/x")).unwrap(), [3]);
        files.remove("run/x").unwrap();
        files.remove("run/x").unwrap();
        assert_eq!(files.read("run/x").unwrap(), None);
        // With its last file a folder goes.
        files.write("run/z", vec![]).unwrap();
        files.remove("run/deep/y").unwrap();
        assert_eq!(files.list("run").unwrap(), ["z"]);
    }

    #[test]
    fn what_is_no_place_is_refused() {
        for (url, said) in [
            ("s3://", "s3://"),
            ("ftp://host/a", "ftp"),
            ("file://relative/a", "file:///FOLDER"),
            ("a", "relative URL"),
        ] {
            let error = Files::open(url).unwrap_err();
            assert!(error.is_input(), "{url}");
            assert!(error.to_string().contains(said), "{url}: {error}");
        }
        assert!(Files::is_url("s3://a/b") && !Files::is_url("runs/a") && !Files::is_url("://a"));
    }
}
