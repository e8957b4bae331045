//! Machine code on disk, so that a kernel is assembled once for a machine and not once for a process.
//!
//! A file's name is a hash of all that decides its content: the text, the compute capability, the driver. A file that
//! is damaged, or was put there by somebody else under that name, is ignored: it begins with the hash of what follows.

use super::driver::DeviceInfo;
use frit_plan::format::{FormatError, replace_file};
use std::io::Write;
use std::path::{Path, PathBuf};

/// Names the folder of the cache; empty turns the cache off.
pub const CACHE_VARIABLE: &str = "FRIT_CACHE";

/// Raised when what lies in a file changes its form.
const FORM: u32 = 2;
const HASH_BYTES: usize = 32;

/// The cache, or nothing.
#[derive(Clone, Debug, Default)]
pub(crate) struct Cache {
    folder: Option<PathBuf>,
}

impl Cache {
    /// The folder that [`CACHE_VARIABLE`] names, else the user's folder for caches; none where there is neither.
    #[cfg(feature = "cuda")]
    pub fn of_user() -> Cache {
        let set = |name: &str| std::env::var_os(name).filter(|v| !v.is_empty()).map(PathBuf::from);
        let folder = match std::env::var_os(CACHE_VARIABLE) {
            Some(named) if named.is_empty() => None,
            Some(named) => Some(PathBuf::from(named)),
            None => set("XDG_CACHE_HOME")
                .or_else(|| set("LOCALAPPDATA"))
                .or_else(|| set("HOME").map(|h| h.join(".cache")))
                .map(|c| c.join("frit").join("cubin")),
        };
        Cache { folder }
    }
    /// A cache in this folder.
    #[cfg(any(test, feature = "verify"))]
    pub fn at(folder: Option<PathBuf>) -> Cache {
        Cache { folder }
    }
    /// The file for a text on a device.
    pub fn path(&self, text: &str, device: &DeviceInfo) -> Option<PathBuf> {
        let (major, minor) = device.capability;
        let mut hash = blake3::Hasher::new();
        hash.update(format!("{FORM} sm_{major}{minor} driver {} {}\n", device.driver, device.release).as_bytes());
        hash.update(text.as_bytes());
        Some(self.folder.as_ref()?.join(format!("{}.cubin", hash.finalize().to_hex())))
    }
    /// What the file holds, if it is whole.
    pub fn read(path: &Path) -> Option<Vec<u8>> {
        let all = std::fs::read(path).ok()?;
        let (hash, code) = all.split_at_checked(HASH_BYTES)?;
        (blake3::hash(code).as_bytes() == hash).then(|| code.to_vec())
    }
    /// Keeps machine code. A full or read-only disk costs time at the next start and nothing else.
    pub fn write(path: &Path, code: &[u8]) {
        let Some(folder) = path.parent() else { return };
        if make_private(folder).is_err() {
            return;
        }
        let _ = replace_file::<FormatError>(path, |w| {
            let io = |source| FormatError::Io { path: path.to_owned(), source };
            w.write_all(blake3::hash(code).as_bytes()).map_err(io)?;
            w.write_all(code).map_err(io)
        });
    }
}

/// Makes a folder that only its owner may enter, unless it is there.
fn make_private(folder: &Path) -> std::io::Result<()> {
    let mut builder = std::fs::DirBuilder::new();
    builder.recursive(true);
    #[cfg(unix)]
    std::os::unix::fs::DirBuilderExt::mode(&mut builder, 0o700);
    builder.create(folder)
}
