//! Whether a program was made by Go: its linker leaves a section of its own, also in stripped programs.

use std::io;
use std::os::unix::fs::FileExt;

use crate::limits;

/// Go's linker: cmd/link/internal/ld/data.go (`.go.buildinfo`, since 1.13) and elf.go (`.note.go.buildid`).
const OF_GO: [&[u8]; 2] = [b".go.buildinfo", b".note.go.buildid"];

/// Whether `file` is an ELF program (elf(5), little endian) with one of Go's sections. Reads its header, its table of
/// sections and their names, no more than [`limits::ELF_SECTIONS`] and [`limits::ELF_NAMES_BYTES`].
///
/// # Errors
/// When it cannot be read, is no such program, or exceeds the limits.
pub fn is_go(file: &impl FileExt) -> io::Result<bool> {
    let mut head = [0; 64];
    file.read_exact_at(&mut head, 0)?;
    let layout = Layout::of(&head).ok_or(io::ErrorKind::InvalidData)?;
    let table = layout.table(&head).ok_or(io::ErrorKind::InvalidData)?;
    let mut sections = vec![0; table.count * table.size];
    file.read_exact_at(&mut sections, table.at)?;
    let Some(names) = sections.chunks_exact(table.size).nth(table.names) else {
        return Ok(false);
    };
    let (at, length) = layout.content(names).ok_or(io::ErrorKind::InvalidData)?;
    if length > limits::ELF_NAMES_BYTES {
        return Err(io::ErrorKind::InvalidData.into());
    }
    let mut text = vec![0; length];
    file.read_exact_at(&mut text, at)?;
    Ok(sections.chunks_exact(table.size).any(|section| {
        let name = number(section, 0, 4).and_then(|at| text.get(usize::try_from(at).ok()?..));
        name.and_then(|name| name.split(|byte| *byte == 0).next())
            .is_some_and(|name| OF_GO.contains(&name))
    }))
}

/// Where the fields stand: in 64-bit programs, or in 32-bit ones.
struct Layout {
    /// Of e_shoff, and its width.
    sections: (usize, usize),
    /// Of e_shentsize, after which e_shnum and e_shstrndx follow.
    entry: usize,
    /// Of sh_offset, after which sh_size follows, and the width of both.
    content: (usize, usize),
    /// Of a section's header.
    size: usize,
}

struct Table {
    at: u64,
    size: usize,
    count: usize,
    names: usize,
}

impl Layout {
    fn of(head: &[u8]) -> Option<Self> {
        match head.get(..6)? {
            b"\x7fELF\x02\x01" => Some(Self {
                sections: (0x28, 8),
                entry: 0x3a,
                content: (0x18, 8),
                size: 64,
            }),
            b"\x7fELF\x01\x01" => Some(Self {
                sections: (0x20, 4),
                entry: 0x2e,
                content: (0x10, 4),
                size: 40,
            }),
            _ => None,
        }
    }

    fn table(&self, head: &[u8]) -> Option<Table> {
        let field = |nth: usize| usize::try_from(number(head, self.entry + 2 * nth, 2)?).ok();
        let table = Table {
            at: number(head, self.sections.0, self.sections.1)?,
            size: field(0)?,
            count: field(1)?,
            names: field(2)?,
        };
        (table.size == self.size && table.count <= limits::ELF_SECTIONS).then_some(table)
    }

    /// Where a section's contents are, and their length.
    fn content(&self, section: &[u8]) -> Option<(u64, usize)> {
        let (at, width) = self.content;
        let length = usize::try_from(number(section, at + width, width)?).ok()?;
        Some((number(section, at, width)?, length))
    }
}

/// Little endian.
fn number(bytes: &[u8], at: usize, width: usize) -> Option<u64> {
    let bytes = bytes.get(at..at + width)?;
    Some(bytes.iter().rev().fold(0, |n, byte| n << 8 | u64::from(*byte)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::File;

    /// A program of nothing but sections with these names; the table stands after the names.
    fn program(names: &[&str], wide: bool) -> Vec<u8> {
        let mut text = vec![0];
        let mut starts = Vec::new();
        for name in names.iter().chain(&[".shstrtab"]) {
            starts.push(text.len() as u32);
            text.extend_from_slice(name.as_bytes());
            text.push(0);
        }
        let (size, width, at_content) = if wide { (64, 8, 0x18) } else { (40, 4, 0x10) };
        let put = |bytes: &mut [u8], at: usize, value: u64, width: usize| {
            bytes[at..at + width].copy_from_slice(&value.to_le_bytes()[..width]);
        };
        let mut head = vec![0; 64];
        head[..6].copy_from_slice(if wide {
            b"\x7fELF\x02\x01"
        } else {
            b"\x7fELF\x01\x01"
        });
        let (offset, entry) = if wide { (0x28, 0x3a) } else { (0x20, 0x2e) };
        put(&mut head, offset, 64 + text.len() as u64, width);
        put(&mut head, entry, size as u64, 2);
        put(&mut head, entry + 2, starts.len() as u64, 2);
        put(&mut head, entry + 4, starts.len() as u64 - 1, 2);
        let mut file = head;
        file.extend_from_slice(&text);
        for start in starts {
            let mut section = vec![0; size];
            put(&mut section, 0, start.into(), 4);
            put(&mut section, at_content, 64, width);
            put(&mut section, at_content + width, text.len() as u64, width);
            file.extend_from_slice(&section);
        }
        file
    }

    fn ask(bytes: &[u8]) -> io::Result<bool> {
        use std::io::Write as _;
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(bytes).unwrap();
        is_go(&file)
    }

    #[test]
    fn a_program_of_go_is_known_by_its_sections() {
        for wide in [true, false] {
            assert!(ask(&program(&[".text", ".go.buildinfo"], wide)).unwrap());
            assert!(ask(&program(&[".note.go.buildid"], wide)).unwrap());
            assert!(!ask(&program(&[".text", ".go.buildinfo2", ".note.gnu.build-id"], wide)).unwrap());
        }
        // A real one: this test.
        assert!(!is_go(&File::open("/proc/self/exe").unwrap()).unwrap());
    }

    #[test]
    fn what_is_no_program_or_too_large_is_an_error() {
        for bad in [&b""[..], b"#!/bin/sh\n", &[0; 64], b"\x7fELF\x02\x01"] {
            assert!(ask(bad).is_err(), "{bad:?}");
        }
        let good = program(&[".go.buildinfo"], true);
        let changed = |at: usize, bytes: &[u8]| {
            let mut bad = good.clone();
            bad[at..at + bytes.len()].copy_from_slice(bytes);
            ask(&bad)
        };
        let too_many = u16::try_from(limits::ELF_SECTIONS + 1).unwrap();
        assert!(changed(0x3c, &too_many.to_le_bytes()).is_err());
        assert!(
            changed(0x28, &u64::MAX.to_le_bytes()).is_err(),
            "a table beyond the end"
        );
        let names = good.len() - 64 + 0x20;
        let too_long = limits::ELF_NAMES_BYTES as u64 + 1;
        assert!(changed(names, &too_long.to_le_bytes()).is_err());
        assert!(changed(names, &u64::MAX.to_le_bytes()).is_err());
        assert!(
            !changed(0x3e, &[0xff, 0xff]).unwrap(),
            "names in a section that is not there"
        );
    }

    proptest::proptest! {
        #[test]
        fn nothing_panics(noise in proptest::collection::vec(proptest::num::u8::ANY, 0..200), wide: bool, at in 6usize..64) {
            let mut bytes = program(&[".go.buildinfo"], wide);
            for (place, byte) in bytes[at..].iter_mut().zip(&noise) {
                *place = *byte;
            }
            drop(ask(&bytes));
        }
    }
}
