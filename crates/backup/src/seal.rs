//! What every object of a repository looks like: a header in clear, then sealed frames.
//!
//! ```text
//! header  "SMPR", format u16, kind u16, epoch u32, salt [32]          44 bytes, little endian
//! frame   length u32, AES-256-GCM( method u8, bytes u32, content ), tag [16]
//! ```
//!
//! The key of an object is made of its epoch's key and its salt; a frame's nonce is its offset in the
//! object; the object's name and header are authenticated with each frame. So a flipped bit, a frame
//! moved, an object renamed or replaced by another are all found when it is opened, and a frame can be
//! read alone, knowing its offset and length. `method` 1 is zstd; 0 is as it came.

use crate::{
    Error, Result,
    key::{Keys, Secret},
};
use bytes::Bytes;
use ring::aead::{AES_256_GCM, Aad, LessSafeKey, Nonce, UnboundKey};

/// The format written here, and the newest read here.
pub const FORMAT: u16 = 1;
/// Bytes of an object's header.
pub const HEADER_BYTES: usize = 44;
const MAGIC: &[u8; 4] = b"SMPR";
const LENGTH_BYTES: usize = 4;
const PREFIX_BYTES: usize = 5;
const TAG_BYTES: usize = 16;
const RAW: u8 = 0;
const ZSTD: u8 = 1;
/// Frames hold no more: a WAL segment is at most 1 GiB.
const CONTENT_MAX: usize = 1 << 30;

/// What an object is. Numbers are for ever.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u16)]
pub enum Kind {
    /// An epoch key, wrapped by the backup key.
    Key = 1,
    /// Whose repository it is.
    Identity = 2,
    /// Blocks of files.
    Pack = 3,
    /// Files of a backup, and where their blocks are.
    Segment = 4,
    /// A backup, as published.
    Backup = 5,
    /// A backup's writer.
    Writer = 6,
    /// A WAL segment, whole.
    Wal = 7,
    /// A WAL segment that grows.
    OpenWal = 8,
    /// A timeline's history.
    History = 9,
    /// A mark on a backup: forgotten, held.
    Mark = 10,
}

/// Compresses what is put into frames; one a thread.
pub struct Compressor {
    zstd: zstd::bulk::Compressor<'static>,
    packed: Vec<u8>,
}

impl Compressor {
    /// With this zstd level.
    pub fn new(level: i32) -> Self {
        let zstd = zstd::bulk::Compressor::new(level).expect("zstd takes any level");
        Self { zstd, packed: Vec::new() }
    }
}

/// Unpacks what frames hold, into the same memory again and again; one a thread.
pub struct Unpacker {
    zstd: zstd::bulk::Decompressor<'static>,
    frame: Vec<u8>,
    content: Vec<u8>,
}

impl Unpacker {
    /// With nothing in it yet.
    pub fn new() -> Self {
        let zstd = zstd::bulk::Decompressor::new().expect("there is memory for it");
        Self { zstd, frame: Vec::new(), content: Vec::new() }
    }

    /// What the frame that was opened last holds.
    pub fn content(&self) -> &[u8] {
        &self.content
    }
}

/// Where a frame is in its object.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    /// From the object's beginning.
    pub offset: u64,
    /// With its length field.
    pub bytes: u32,
}

fn object_key(epoch_key: &Secret, salt: &[u8]) -> LessSafeKey {
    let key = blake3::keyed_hash(&epoch_key.0, salt);
    LessSafeKey::new(UnboundKey::new(&AES_256_GCM, key.as_bytes()).expect("the key fits"))
}

fn nonce(offset: u64) -> Nonce {
    let mut bytes = [0; 12];
    bytes[..8].copy_from_slice(&offset.to_le_bytes());
    Nonce::assume_unique_for_key(bytes)
}

/// Makes an object, frame by frame.
pub struct Sealer {
    key: LessSafeKey,
    /// Authenticated with each frame: the header, then the object's name.
    context: Vec<u8>,
    /// Where `content` begins in the object.
    begin: u64,
    content: Vec<u8>,
}

impl Sealer {
    /// An object of this kind and name.
    pub fn new(keys: &Keys, kind: Kind, name: &str) -> Self {
        let (epoch, epoch_key) = keys.newest();
        let salt: [u8; 32] = rand::random();
        let mut header = Vec::with_capacity(HEADER_BYTES + name.len());
        header.extend_from_slice(MAGIC);
        header.extend_from_slice(&FORMAT.to_le_bytes());
        header.extend_from_slice(&(kind as u16).to_le_bytes());
        header.extend_from_slice(&epoch.to_le_bytes());
        header.extend_from_slice(&salt);
        let content = header.clone();
        header.extend_from_slice(name.as_bytes());
        Self { key: object_key(epoch_key, &salt), context: header, begin: 0, content }
    }

    /// Bytes not yet taken.
    pub fn bytes(&self) -> usize {
        self.content.len()
    }

    /// Adds a frame with `content`, compressed where that makes it smaller.
    pub fn push(&mut self, content: &[u8], compressor: &mut Compressor) -> Place {
        assert!(content.len() <= CONTENT_MAX, "a frame of {} bytes", content.len());
        let at = self.content.len();
        let offset = self.begin + at as u64;
        compressor.packed.clear();
        compressor.packed.reserve(zstd::zstd_safe::compress_bound(content.len()));
        let packed = compressor.zstd.compress_to_buffer(content, &mut compressor.packed);
        let (method, stored) = match packed {
            Ok(bytes) if bytes < content.len() => (ZSTD, compressor.packed.as_slice()),
            _ => (RAW, content),
        };
        let sealed = PREFIX_BYTES + stored.len() + TAG_BYTES;
        self.content.reserve(LENGTH_BYTES + sealed);
        self.content.extend_from_slice(&u32_of(sealed).to_le_bytes());
        self.content.push(method);
        self.content.extend_from_slice(&u32_of(content.len()).to_le_bytes());
        self.content.extend_from_slice(stored);
        let in_place = &mut self.content[at + LENGTH_BYTES..];
        let tag =
            self.key.seal_in_place_separate_tag(nonce(offset), Aad::from(&self.context), in_place);
        self.content.extend_from_slice(tag.expect("a frame is not too long").as_ref());
        Place { offset, bytes: u32_of(LENGTH_BYTES + sealed) }
    }

    /// What was made since the last call, for an object that grows.
    pub fn take(&mut self) -> Bytes {
        self.begin += self.content.len() as u64;
        std::mem::take(&mut self.content).into()
    }

    /// The object.
    pub fn finish(self) -> Bytes {
        self.content.into()
    }
}

fn u32_of(length: usize) -> u32 {
    u32::try_from(length).expect("a frame is at most 1 GiB")
}

/// An object with one frame.
pub fn seal(keys: &Keys, kind: Kind, name: &str, content: &[u8], level: i32) -> Bytes {
    let mut sealer = Sealer::new(keys, kind, name);
    sealer.push(content, &mut Compressor::new(level));
    sealer.finish()
}

/// Opens the frames of an object.
pub struct Opener {
    key: LessSafeKey,
    context: Vec<u8>,
    name: String,
}

impl Opener {
    /// Of the object of this kind and name that begins with `header`.
    pub fn new(keys: &Keys, kind: Kind, name: &str, header: &[u8]) -> Result<Self> {
        let header =
            header.get(..HEADER_BYTES).ok_or_else(|| Error::damaged(name, "it is cut short"))?;
        let short = |at: usize| u16::from_le_bytes([header[at], header[at + 1]]);
        if &header[..4] != MAGIC {
            return Err(Error::damaged(
                name,
                "it does not begin as an object of a repository does",
            ));
        }
        if short(4) > FORMAT {
            return Err(Error::Format { key: name.to_owned(), found: short(4), known: FORMAT });
        }
        if short(6) != kind as u16 {
            return Err(Error::damaged(name, format!("it is of kind {}, not {kind:?}", short(6))));
        }
        let epoch = u32::from_le_bytes([header[8], header[9], header[10], header[11]]);
        let epoch_key = keys.epochs.get(&epoch);
        let epoch_key = epoch_key
            .ok_or_else(|| Error::damaged(name, format!("there is no key of epoch {epoch}")))?;
        let mut context = header.to_vec();
        context.extend_from_slice(name.as_bytes());
        Ok(Self { key: object_key(epoch_key, &header[12..]), context, name: name.to_owned() })
    }

    /// Opens the frame that begins at `offset` of the object and of `bytes`, which may go on
    /// behind it. None if it is not there as a whole.
    pub fn open(&self, offset: u64, bytes: &[u8]) -> Result<Option<(Vec<u8>, usize)>> {
        let mut unpacker = Unpacker::new();
        let opened = self.open_with(offset, bytes, &mut unpacker)?;
        Ok(opened.map(|bytes| (unpacker.content, bytes)))
    }

    /// The same; what the frame holds is then in `unpacker`. Returns the frame's bytes.
    pub fn open_with(
        &self,
        offset: u64,
        bytes: &[u8],
        unpacker: &mut Unpacker,
    ) -> Result<Option<usize>> {
        let Some(length) = bytes.first_chunk::<LENGTH_BYTES>() else { return Ok(None) };
        let sealed = u32::from_le_bytes(*length) as usize;
        if !(PREFIX_BYTES + TAG_BYTES..=CONTENT_MAX + PREFIX_BYTES + TAG_BYTES).contains(&sealed) {
            return Err(self.damaged("the length of a frame is impossible"));
        }
        let Some(frame) = bytes.get(LENGTH_BYTES..LENGTH_BYTES + sealed) else { return Ok(None) };
        let Unpacker { zstd, frame: own, content } = unpacker;
        own.clear();
        own.extend_from_slice(frame);
        let opened = self.key.open_in_place(nonce(offset), Aad::from(&self.context), own);
        let opened = opened.map_err(|_| self.damaged("its checksum is wrong"))?;
        let (prefix, stored) = opened.split_at(PREFIX_BYTES);
        let length = u32::from_le_bytes([prefix[1], prefix[2], prefix[3], prefix[4]]) as usize;
        content.clear();
        match prefix[0] {
            RAW => content.extend_from_slice(stored),
            ZSTD => {
                content.reserve(length.min(CONTENT_MAX));
                let unpacked = zstd.decompress_to_buffer(stored, content);
                unpacked.map_err(|e| self.damaged(&format!("it cannot be unpacked: {e}")))?;
            }
            other => return Err(self.damaged(&format!("it is packed by method {other}"))),
        }
        if content.len() != length {
            return Err(self.damaged("a frame has another length than it says"));
        }
        Ok(Some(LENGTH_BYTES + sealed))
    }

    fn damaged(&self, why: &str) -> Error {
        Error::damaged(&self.name, why)
    }
}

/// Opens an object with one frame.
pub fn open(keys: &Keys, kind: Kind, name: &str, object: &[u8]) -> Result<Vec<u8>> {
    let opener = Opener::new(keys, kind, name, object)?;
    match opener.open(HEADER_BYTES as u64, &object[HEADER_BYTES..])? {
        Some((content, bytes)) if HEADER_BYTES + bytes == object.len() => Ok(content),
        Some(_) => Err(Error::damaged(name, "something follows its end")),
        None => Err(Error::damaged(name, "it is cut short")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn keys() -> Keys {
        Keys::single(1, Secret([7; 32]))
    }

    #[test]
    fn every_flip_and_cut_is_found() {
        let keys = keys();
        let object = seal(&keys, Kind::Backup, "backups/a", &b"content ".repeat(20), 1);
        assert_eq!(
            open(&keys, Kind::Backup, "backups/a", &object).unwrap(),
            b"content ".repeat(20)
        );
        for at in 0..object.len() {
            for bit in [1, 128] {
                let mut flipped = object.to_vec();
                flipped[at] ^= bit;
                assert!(open(&keys, Kind::Backup, "backups/a", &flipped).is_err(), "byte {at}");
            }
            assert!(open(&keys, Kind::Backup, "backups/a", &object[..at]).is_err(), "cut at {at}");
        }
        let longer = [&object[..], b"x"].concat();
        assert!(open(&keys, Kind::Backup, "backups/a", &longer).is_err());
        assert!(open(&keys, Kind::Backup, "backups/b", &object).is_err(), "renamed");
        assert!(open(&keys, Kind::Wal, "backups/a", &object).is_err(), "another kind");
        let other = Keys::single(1, Secret([8; 32]));
        assert!(open(&other, Kind::Backup, "backups/a", &object).is_err(), "another key");
    }

    #[test]
    fn frames_are_read_alone_and_an_object_that_grows_ends_anywhere() {
        let keys = keys();
        let mut sealer = Sealer::new(&keys, Kind::OpenWal, "wal/x");
        let mut compressor = Compressor::new(1);
        let noise: Vec<u8> =
            (0..3000u32).map(|i| (i.wrapping_mul(2_654_435_761) >> 13) as u8).collect();
        let first = sealer.push(&noise, &mut compressor);
        let mut object = sealer.take().to_vec();
        let second = sealer.push(b"", &mut compressor);
        let third = sealer.push(&[0; 100_000], &mut compressor);
        object.extend(sealer.take());
        assert!(third.bytes < 200, "zeros are packed");
        let opener = Opener::new(&keys, Kind::OpenWal, "wal/x", &object).unwrap();
        let at =
            |place: Place| opener.open(place.offset, &object[place.offset as usize..]).unwrap();
        assert_eq!(at(first).unwrap(), (noise, first.bytes as usize));
        assert_eq!(at(second).unwrap().0, b"");
        assert_eq!(at(third).unwrap().0, [0; 100_000]);
        let cut = &object[third.offset as usize..object.len() - 1];
        assert!(opener.open(third.offset, cut).unwrap().is_none());
        assert!(opener.open(first.offset + 1, &object[first.offset as usize..]).is_err(), "moved");
    }
}
