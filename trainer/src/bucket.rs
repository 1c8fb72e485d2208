//! Files at a URL: a bucket of S3, Google Cloud or Azure that other machines see too, or a folder of this machine.
//!
//! Files are small and read whole: adapters and checkpoints. Credentials come from the environment variables that the
//! providers' own tools read: `AWS_…`, `GOOGLE_…` and `AZURE_…`.

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
pub struct Bucket {
    url: String,
    root: Path,
    objects: Box<dyn ObjectStore>,
    runtime: Runtime,
}

const KINDS: &str = "write file:///FOLDER, s3://BUCKET/FOLDER, gs://BUCKET/FOLDER or az://CONTAINER/FOLDER, and log in by AWS_…, GOOGLE_… or AZURE_… in the environment";

impl Bucket {
    /// `true` if this is a URL rather than a path.
    pub fn is_url(place: &str) -> bool {
        place.split_once("://").is_some_and(|(scheme, _)| {
            !scheme.is_empty() && scheme.chars().all(|letter| letter.is_ascii_alphanumeric())
        })
    }

    /// Opens the folder at this URL. Nothing is read yet, and the folder need not exist.
    ///
    /// # Errors
    /// [`Error::Input`] if the URL is malformed or of an unknown scheme; [`Error::Runtime`] if the runtime of the client
    /// cannot be started.
    pub fn open(url: &str) -> Result<Self> {
        let problem =
            |reason: &dyn std::fmt::Display| Error::input(format!("`{url}` names no bucket: {reason}; {KINDS}"));
        let parsed = Url::parse(url).map_err(|error| problem(&error))?;
        // Only theirs: some of their keys are as short as `token`.
        let own = |name: &str| ["AWS_", "GOOGLE_", "AZURE_"].iter().any(|prefix| name.starts_with(prefix));
        let variables = std::env::vars_os()
            .filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)))
            .filter(|(name, _)| own(name));
        // Every provider removes single files; several at once only some.
        let options = std::iter::once(("aws_disable_bulk_delete".to_owned(), "true".to_owned())).chain(variables);
        // Fails only if a provider is installed already, which serves as well.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let (mut objects, root) = object_store::parse_url_opts(&parsed, options).map_err(|error| problem(&error))?;
        if parsed.scheme() == "file" {
            // A bucket has no empty folders, so a folder of this machine has none either.
            objects = Box::new(LocalFileSystem::new().with_automatic_cleanup(true));
        }
        let runtime = runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .map_err(|error| Error::runtime(format!("cannot start the client of {url}: {error}")))?;
        Ok(Self { url: url.trim_end_matches('/').to_owned(), root, objects, runtime })
    }

    /// Returns the URL of a file.
    pub fn url_of(&self, name: &str) -> String {
        format!("{}/{name}", self.url)
    }

    fn path(&self, name: &str) -> Path {
        name.split('/').fold(self.root.clone(), Path::join)
    }

    fn failed(&self, doing: &'static str, name: &str, error: &object_store::Error) -> Error {
        Error::runtime(format!(
            "cannot {doing} {}: {error}; is the network there, and do AWS_…, GOOGLE_… or AZURE_… in the environment log in?",
            self.url_of(name)
        ))
    }

    /// Writes a file, whole or not at all.
    ///
    /// # Errors
    /// [`Error::Runtime`] if the provider cannot be reached or refuses.
    pub fn write(&self, name: &str, bytes: Vec<u8>) -> Result<()> {
        let written = self.runtime.block_on(self.objects.put(&self.path(name), PutPayload::from(bytes)));
        written.map(drop).map_err(|error| self.failed("write", name, &error))
    }

    /// Returns a file's content, or `None` if there is no such file.
    ///
    /// # Errors
    /// [`Error::Runtime`] if the provider cannot be reached or refuses.
    pub fn read(&self, name: &str) -> Result<Option<Vec<u8>>> {
        let path = self.path(name);
        let read = self.runtime.block_on(async { self.objects.get(&path).await?.bytes().await });
        match read {
            Ok(bytes) => Ok(Some(bytes.into())),
            Err(object_store::Error::NotFound { .. }) => Ok(None),
            Err(error) => Err(self.failed("read", name, &error)),
        }
    }

    /// Lists the names of the files and folders right below a folder, without its own name; none if it does not exist.
    ///
    /// # Errors
    /// [`Error::Runtime`] if the provider cannot be reached or refuses.
    pub fn list(&self, folder: &str) -> Result<Vec<String>> {
        let listed = self.runtime.block_on(self.objects.list_with_delimiter(Some(&self.path(folder))));
        let listed = listed.map_err(|error| self.failed("list", folder, &error))?;
        let files = listed.objects.iter().map(|file| &file.location);
        Ok(files.chain(&listed.common_prefixes).filter_map(|path| path.filename().map(str::to_owned)).collect())
    }

    /// Removes a file, if it exists.
    ///
    /// # Errors
    /// [`Error::Runtime`] if the provider cannot be reached or refuses.
    pub fn remove(&self, name: &str) -> Result<()> {
        match self.runtime.block_on(self.objects.delete(&self.path(name))) {
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
        let bucket = Bucket::open(&format!("file://{}/a b/", folder.path().display())).unwrap();
        assert_eq!(bucket.list("").unwrap(), Vec::<String>::new());
        assert_eq!(bucket.read("run/x").unwrap(), None);
        bucket.write("run/x", vec![1, 2]).unwrap();
        bucket.write("run/deep/y", vec![]).unwrap();
        bucket.write("run/x", vec![3]).unwrap();
        assert_eq!(bucket.read("run/x").unwrap(), Some(vec![3]));
        let mut names = bucket.list("run").unwrap();
        names.sort();
        assert_eq!(names, ["deep", "x"]);
        assert!(bucket.url_of("run/x").ends_with("/a b/run/x"));
        assert_eq!(std::fs::read(folder.path().join("a b/run/x")).unwrap(), [3]);
        bucket.remove("run/x").unwrap();
        bucket.remove("run/x").unwrap();
        assert_eq!(bucket.read("run/x").unwrap(), None);
        // With its last file a folder goes.
        bucket.write("run/z", vec![]).unwrap();
        bucket.remove("run/deep/y").unwrap();
        assert_eq!(bucket.list("run").unwrap(), ["z"]);
    }

    #[test]
    fn what_is_no_place_is_refused() {
        for (url, said) in [
            ("s3://", "s3://"),
            ("ftp://host/a", "ftp"),
            ("file://relative/a", "file:///FOLDER"),
            ("a", "relative URL"),
        ] {
            let error = Bucket::open(url).unwrap_err();
            assert!(error.is_input(), "{url}");
            assert!(error.to_string().contains(said), "{url}: {error}");
        }
        assert!(Bucket::is_url("s3://a/b") && !Bucket::is_url("runs/a") && !Bucket::is_url("://a"));
    }
}
