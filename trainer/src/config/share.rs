//! Config of a shared run: `[share]`.

use crate::bucket::Bucket;
use crate::{Error, Result};
use serde::{Deserialize, Serialize};

/// `[share]`: a URL at which other machines find a run.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Share {
    /// URL of the adapters and checkpoints for other machines: `s3://BUCKET/FOLDER`, `gs://…`, `az://…` or
    /// `file:///FOLDER`, below which the run gets a folder of its name. Empty for none.
    pub url: String,
}

impl Share {
    /// Returns an error for a URL that cannot be opened.
    pub(crate) fn check(&self) -> Result<()> {
        if !self.url.is_empty() {
            Bucket::open(&self.url).map_err(|error| Error::input(format!("share.url: {error}")))?;
        }
        Ok(())
    }
}
