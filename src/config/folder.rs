//! Folders that hold secrets.

use std::io;
use std::path::Path;

/// Creates a folder and its missing parents, accessible only to this user. An existing folder is left unchanged.
pub fn make_private_folder(folder: &Path) -> io::Result<()> {
    let mut builder = std::fs::DirBuilder::new();
    builder.recursive(true);
    #[cfg(unix)]
    std::os::unix::fs::DirBuilderExt::mode(&mut builder, 0o700);
    builder.create(folder)
}
