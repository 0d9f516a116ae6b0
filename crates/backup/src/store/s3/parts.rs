//! Objects that grow, as parts that are put once each.

use super::S3;
use crate::{
    Error, Result, Store,
    store::{Append, Listed},
};
use async_trait::async_trait;
use bytes::{Bytes, BytesMut};
use futures_util::{StreamExt, TryStreamExt, stream};
use std::collections::BTreeMap;

/// Behind the object's key, and followed by eight digits.
const PART: &str = "/part.";
/// Parts that are read at a time.
const READS_AT_ONCE: usize = 8;

fn part(key: &str, number: u32) -> String {
    format!("{key}{PART}{number:08}")
}

/// The object of which this is a part, and which one.
fn part_of(key: &str) -> Option<(&str, u32)> {
    let (object, number) = key.rsplit_once(PART)?;
    let is_number = number.len() == 8 && number.bytes().all(|byte| byte.is_ascii_digit());
    if is_number { Some((object, number.parse().ok()?)) } else { None }
}

/// Shows parts as the objects that they are of, last written with their last part.
pub(super) fn fold(plain: Vec<Listed>) -> Vec<Listed> {
    let mut objects: BTreeMap<String, Listed> = BTreeMap::new();
    for listed in plain {
        let part = part_of(&listed.key);
        let key = part.map_or(listed.key.as_str(), |(object, _)| object).to_owned();
        let empty = Listed { key: key.clone(), bytes: 0, written_unix_ms: 0 };
        let object = objects.entry(key).or_insert(empty);
        if part.is_none_or(|(_, number)| number > 0) {
            object.bytes += listed.bytes;
        }
        object.written_unix_ms = object.written_unix_ms.max(listed.written_unix_ms);
    }
    objects.into_values().collect()
}

/// Keys of the parts that are there, in their order.
async fn list(store: &S3, key: &str) -> Result<Vec<(u32, String)>> {
    let listed = store.list_plain(&format!("{key}/")).await?;
    let parts = listed.into_iter().filter_map(|l| {
        let (object, number) = part_of(&l.key)?;
        (object == key).then(|| (number, l.key.clone()))
    });
    let mut parts: Vec<_> = parts.collect();
    parts.sort_unstable();
    Ok(parts)
}

struct Growing {
    store: S3,
    key: String,
    next: u32,
    failed: bool,
}

pub(super) async fn begin(store: &S3, key: &str) -> Result<Box<dyn Append>> {
    // The first part is no content: whoever else begins the object finds it taken. It is random, as
    // one whose answer was lost is told from another's by what is in it.
    let claim = Bytes::copy_from_slice(&rand::random::<[u8; 16]>());
    match store.put_new(&part(key, 0), claim).await {
        Err(Error::Exists { repository, .. }) => {
            return Err(Error::Exists { key: key.to_owned(), repository });
        }
        begun => begun?,
    }
    Ok(Box::new(Growing { store: store.clone(), key: key.to_owned(), next: 1, failed: false }))
}

#[async_trait]
impl Append for Growing {
    async fn append(&mut self, bytes: Bytes) -> Result<()> {
        if self.failed {
            let (key, repository) = (self.key.clone(), self.store.name().to_owned());
            let why = "an earlier write failed".to_owned();
            return Err(Error::Store { doing: "append to", key, repository, why });
        }
        // Until it is known that it worked: if this is dropped half way, nothing may follow either.
        self.failed = true;
        self.store.put_new(&part(&self.key, self.next), bytes).await?;
        self.failed = false;
        self.next += 1;
        Ok(())
    }
}

pub(super) async fn read(store: &S3, key: &str) -> Result<Bytes> {
    let parts = list(store, key).await?;
    if parts.is_empty() {
        return Err(Error::Missing { key: key.to_owned(), repository: store.name().to_owned() });
    }
    for (expected, (number, _)) in (0..).zip(&parts) {
        if *number != expected {
            return Err(Error::damaged(key, format!("its part {expected} is missing")));
        }
    }
    let reads: Vec<_> = parts.iter().skip(1).map(|(_, part)| store.get(part)).collect();
    let reads = stream::iter(reads).buffered(READS_AT_ONCE);
    let whole = reads.try_fold(BytesMut::new(), |mut whole, part| async move {
        whole.extend_from_slice(&part);
        Ok(whole)
    });
    Ok(whole.await?.freeze())
}

pub(super) async fn delete(store: &S3, key: &str) -> Result<()> {
    // The first part is the last to go: nobody begins the object while there is one left.
    for (_, part) in list(store, key).await?.into_iter().rev() {
        store.delete(&part).await?;
    }
    Ok(())
}
