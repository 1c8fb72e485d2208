//! A trained policy in the formats of other programs: PEFT adapters, Hugging Face folders, GGUF files.

mod merged;
mod peft;

pub use merged::{export_gguf, export_hub};
pub use peft::{PeftForm, export_peft};
