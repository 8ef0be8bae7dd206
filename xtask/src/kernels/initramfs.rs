//! A root file system for a guest, as the kernel unpacks it: a cpio archive in memory ("newc",
//! Documentation/driver-api/early-userspace/buffer-format.rst).

use std::collections::BTreeMap;
use std::path::Path;
use std::process::Command;

use super::{Failed, process, read};

/// Files by path, without the leading slash; a directory stands before what is in it.
#[derive(Default)]
pub struct Archive(BTreeMap<String, Node>);

enum Node {
    Directory,
    File { mode: u32, bytes: Vec<u8> },
}

const DIRECTORY: u32 = 0o040_000;
const REGULAR: u32 = 0o100_000;

impl Archive {
    pub fn directory(&mut self, path: &str) {
        let path = path.trim_start_matches('/');
        if let Some((parent, _)) = path.rsplit_once('/') {
            self.directory(parent);
        }
        self.0.insert(path.to_owned(), Node::Directory);
    }

    pub fn file(&mut self, path: &str, mode: u32, bytes: Vec<u8>) {
        let path = path.trim_start_matches('/');
        if let Some((parent, _)) = path.rsplit_once('/') {
            self.directory(parent);
        }
        self.0.insert(path.to_owned(), Node::File { mode, bytes });
    }

    /// A program of this machine with the libraries that it loads, which keep their places.
    pub fn program(&mut self, path: &str, program: &Path) -> Result<(), Failed> {
        self.file(path, 0o755, read(program)?);
        // A static program has none, and ldd fails.
        let libraries = process::output(Command::new("ldd").arg(program)).unwrap_or_default();
        for library in libraries_in(&libraries) {
            self.file(library, 0o755, read(Path::new(library))?);
        }
        Ok(())
    }

    pub fn bytes(&self) -> Vec<u8> {
        let mut archive = Vec::new();
        for (number, (path, node)) in self.0.iter().enumerate() {
            match node {
                Node::Directory => member(&mut archive, number, path, DIRECTORY | 0o755, &[]),
                Node::File { mode, bytes } => member(&mut archive, number, path, REGULAR | mode, bytes),
            }
        }
        member(&mut archive, 0, "TRAILER!!!", 0, &[]);
        archive
    }
}

fn member(archive: &mut Vec<u8>, number: usize, path: &str, mode: u32, bytes: &[u8]) {
    // Magic; inode, mode, uid, gid, links, mtime, size, two device numbers in four, length of name, checksum.
    let header = format!(
        "070701{number:08x}{mode:08x}{0:08x}{0:08x}{1:08x}{0:08x}{size:08x}{0:08x}{0:08x}{0:08x}{0:08x}{name:08x}{0:08x}",
        0,
        1,
        size = bytes.len(),
        name = path.len() + 1,
    );
    archive.extend_from_slice(header.as_bytes());
    archive.extend_from_slice(path.as_bytes());
    archive.push(0);
    pad(archive);
    archive.extend_from_slice(bytes);
    pad(archive);
}

fn pad(archive: &mut Vec<u8>) {
    archive.resize(archive.len().next_multiple_of(4), 0);
}

/// `libc.so.6 => /lib/x86_64-linux-gnu/libc.so.6 (0x…)`, and the loader's own line, which has no arrow.
fn libraries_in(ldd: &str) -> impl Iterator<Item = &str> {
    ldd.split_whitespace().filter(|word| word.starts_with('/'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn directories_come_before_what_is_in_them() {
        let mut archive = Archive::default();
        archive.file("/a/b/c", 0o644, b"12345".to_vec());
        archive.directory("/a");
        let bytes = archive.bytes();
        let text = String::from_utf8(bytes.clone()).unwrap();
        let at = |what: &str| text.find(what).unwrap_or_else(|| panic!("{what} in {text:?}"));
        assert!(at("a\0") < at("a/b\0") && at("a/b\0") < at("a/b/c\0") && at("a/b/c\0") < at("TRAILER!!!\0"));
        assert!(text.contains("000081a4") && text.contains("000041ed"), "{text:?}");
        // Every header begins at a multiple of four.
        assert!(text.match_indices("070701").all(|(at, _)| at % 4 == 0));
        assert_eq!(bytes.len() % 4, 0);
    }

    #[test]
    fn the_loader_is_a_library_too() {
        let ldd = "\tlinux-vdso.so.1 (0x1)\n\tlibc.so.6 => /lib/libc.so.6 (0x2)\n\t/lib64/ld.so (0x3)\n";
        assert_eq!(
            libraries_in(ldd).collect::<Vec<_>>(),
            ["/lib/libc.so.6", "/lib64/ld.so"]
        );
    }
}
