//! What is known of a file beside its contents, as the format has it.

use base64::{Engine, engine::general_purpose::STANDARD};
use rustic_core::{
    jiff::Timestamp,
    repofile::{Metadata, Node, NodeType},
};
use rustix::{fs as sys, io::Errno};
use serde_json::{Value, json};
use std::{
    ffi::{CStr, OsStr},
    fs::{File, Metadata as Found},
    io,
    os::unix::fs::{FileTypeExt, MetadataExt},
    path::Path,
};

/// Bits of Go's file modes, in which the format tells the mode, and what they are here.
const GO_BITS: [(u32, u32); 3] = [(1 << 23, 0o4000), (1 << 22, 0o2000), (1 << 20, 0o1000)];
const GO_DIR: u32 = 1 << 31;
const GO_SYMLINK: u32 = 1 << 27;
const GO_DEVICE: u32 = 1 << 26;
const GO_FIFO: u32 = 1 << 25;
const GO_SOCKET: u32 = 1 << 24;
const GO_CHAR_DEVICE: u32 = 1 << 21;
const PERMISSIONS: u32 = 0o777;

/// So long most extended attributes, and lists of them, are at the most.
const LENGTH_MOST: usize = 512;
/// The kernel has none that are longer.
const LENGTH_MAX: usize = 64 << 10;

fn mode_to_go(found: &Found) -> u32 {
    let kind = found.file_type();
    let kind = match () {
        () if kind.is_dir() => GO_DIR,
        () if kind.is_symlink() => GO_SYMLINK,
        () if kind.is_block_device() => GO_DEVICE,
        () if kind.is_char_device() => GO_DEVICE | GO_CHAR_DEVICE,
        () if kind.is_fifo() => GO_FIFO,
        () if kind.is_socket() => GO_SOCKET,
        () => 0,
    };
    let bits = GO_BITS.iter().filter(|(_, ours)| found.mode() & ours != 0);
    bits.fold(kind | found.mode() & PERMISSIONS, |mode, (go, _)| mode | go)
}

/// Permissions and the three bits above them, as `chmod` takes them.
pub(crate) fn mode_from_go(mode: u32) -> u32 {
    let bits = GO_BITS.iter().filter(|(go, _)| mode & go != 0);
    bits.fold(mode & PERMISSIONS, |mode, (_, ours)| mode | ours)
}

/// A file as the format has it. `link` is what a symbolic link says, `file` is open if it is a regular one.
pub(crate) fn node(
    name: &OsStr,
    path: &Path,
    found: &Found,
    link: Option<&Path>,
    file: Option<&File>,
) -> io::Result<Node> {
    let kind = found.file_type();
    let time = |seconds: i64, nanoseconds: i64| {
        Timestamp::new(seconds, i32::try_from(nanoseconds).unwrap_or(0)).ok()
    };
    let is_linked = found.nlink() > 1 && !kind.is_dir();
    let mtime = time(found.mtime(), found.mtime_nsec());
    let metadata = Metadata {
        mode: Some(mode_to_go(found)),
        mtime,
        // Reading changes the real one.
        atime: mtime,
        ctime: time(found.ctime(), found.ctime_nsec()),
        uid: Some(found.uid()),
        gid: Some(found.gid()),
        user: None,
        group: None,
        inode: found.ino(),
        // Tells hard links; otherwise it would only say that a disk was found in another order.
        device_id: if is_linked { found.dev() } else { 0 },
        size: if kind.is_file() { found.len() } else { 0 },
        links: if kind.is_dir() { 0 } else { found.nlink() },
        // The library's type for them has no name outside of it.
        extended_attributes: serde_json::from_value(in_format(attributes_of(path, file)?))?,
    };
    let kind = match link {
        Some(target) => NodeType::from_link(target),
        None if kind.is_dir() => NodeType::Dir,
        None if kind.is_block_device() => NodeType::Dev { device: found.rdev() },
        None if kind.is_char_device() => NodeType::Chardev { device: found.rdev() },
        None if kind.is_fifo() => NodeType::Fifo,
        None if kind.is_socket() => NodeType::Socket,
        None => NodeType::File,
    };
    let node = Node::new_node(name, kind, metadata);
    match *node.name() == *name {
        true => Ok(node),
        false => Err(io::Error::other("its name cannot be told in the format")),
    }
}

fn in_format(attributes: Vec<Attribute>) -> Value {
    let attribute =
        |(name, value): Attribute| json!({"name": name, "value": STANDARD.encode(value)});
    attributes.into_iter().map(attribute).collect()
}

type Attribute = (String, Vec<u8>);

/// Extended attributes, access control lists among them.
fn attributes_of(path: &Path, file: Option<&File>) -> io::Result<Vec<Attribute>> {
    let listed = whole(|buffer| match file {
        Some(file) => sys::flistxattr(file, buffer),
        None => sys::llistxattr(path, buffer),
    });
    let listed = match listed {
        Err(Errno::NOTSUP | Errno::NOSYS) => return Ok(Vec::new()),
        listed => listed?,
    };
    let mut attributes = Vec::new();
    for name in listed.split_inclusive(|byte| *byte == 0) {
        let name = CStr::from_bytes_with_nul(name).map_err(io::Error::other)?;
        let value = whole(|buffer| match file {
            Some(file) => sys::fgetxattr(file, name, buffer),
            None => sys::lgetxattr(path, name, buffer),
        });
        match value {
            // Removed meanwhile.
            Err(Errno::NODATA) => continue,
            value => {
                let name = name.to_str().map_err(io::Error::other)?.to_owned();
                attributes.push((name, value?));
            }
        }
    }
    Ok(attributes)
}

/// A value whose length is not known before.
fn whole(read: impl Fn(&mut [u8]) -> rustix::io::Result<usize>) -> rustix::io::Result<Vec<u8>> {
    let mut buffer = vec![0; LENGTH_MOST];
    loop {
        match read(&mut buffer) {
            Err(Errno::RANGE) if buffer.len() < LENGTH_MAX => buffer.resize(buffer.len() * 2, 0),
            Ok(length) => {
                buffer.truncate(length);
                return Ok(buffer);
            }
            Err(error) => return Err(error),
        }
    }
}
