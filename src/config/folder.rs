//! Folders that hold what is secret.

use std::io;
use std::path::Path;

/// Makes a folder, and those above it that are missing, for this user alone. One that exists is left as it is.
pub fn make_private_folder(folder: &Path) -> io::Result<()> {
    let mut builder = std::fs::DirBuilder::new();
    builder.recursive(true);
    #[cfg(unix)]
    std::os::unix::fs::DirBuilderExt::mode(&mut builder, 0o700);
    builder.create(folder)
}
