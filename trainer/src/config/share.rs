//! `[share]`

use crate::{Error, Result};
use serde::{Deserialize, Serialize};
use store::Files;

/// `[share]`
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Share {
    /// Where other machines find this run's adapters and checkpoints: `s3://BUCKET/FOLDER`, `gs://…`, `az://…` or
    /// `file:///FOLDER`, below which the run gets a folder of its name. Empty for nowhere.
    pub url: String,
}

impl Share {
    /// Refuses a URL that names no place.
    pub(crate) fn check(&self) -> Result<()> {
        if !self.url.is_empty() {
            Files::open(&self.url).map_err(|error| Error::input(format!("share.url: {error}")))?;
        }
        Ok(())
    }
}
