//! Payloads that are too large for a message.

use async_nats::jetstream::object_store::{ObjectMetadata, ObjectStore};
use async_nats::jetstream::stream::Stream;
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE;
use bytes::Bytes;
use std::time::Duration;
use tokio::io::AsyncReadExt;

/// Into pieces of this size they are cut: well below what any server takes as a message.
const PIECE: usize = 256 << 10;

/// How long one may take, beside a second for each MiB.
const PATIENCE: Duration = Duration::from_secs(30);

/// The object store of a queue.
pub(super) struct Objects {
    store: ObjectStore,
    stream: Stream<()>,
    bucket: String,
}

impl Objects {
    pub(super) fn new(store: ObjectStore, stream: Stream<()>, bucket: &str) -> Objects {
        Objects { store, stream, bucket: bucket.into() }
    }

    /// Stores an object.
    ///
    /// # Errors
    /// Why it could not be.
    pub(super) async fn put(&self, name: &str, body: &Bytes) -> Result<(), String> {
        let meta = ObjectMetadata { name: name.into(), chunk_size: Some(PIECE), ..ObjectMetadata::default() };
        let mut reader = &body[..];
        let put = self.store.put(meta, &mut reader);
        match tokio::time::timeout(patience(body.len() as u64), put).await {
            Ok(Ok(_)) => Ok(()),
            Ok(Err(error)) => Err(error.to_string()),
            Err(_) => Err("the object store does not answer".into()),
        }
    }

    /// Fetches an object of at most so many bytes.
    ///
    /// # Errors
    /// Why it could not be.
    pub(super) async fn get(&self, name: &str, limit: u64) -> Result<Bytes, String> {
        let fetch = async {
            let object = self.store.get(name).await.map_err(|error| error.to_string())?;
            let size = object.info().size as u64;
            if size > limit {
                return Err(format!("it has {size} bytes, and may have {limit}"));
            }
            // What is claimed is not yet there: memory is made as bytes arrive.
            let mut body = Vec::new();
            object.take(size + 1).read_to_end(&mut body).await.map_err(|error| error.to_string())?;
            if body.len() as u64 != size { Err("it is cut short".into()) } else { Ok(body.into()) }
        };
        let timed = tokio::time::timeout(patience(limit), fetch).await;
        timed.unwrap_or_else(|_| Err("the object store does not answer".into()))
    }

    /// Removes an object and every trace of it.
    pub(super) async fn remove(&self, name: &str) {
        let Ok(info) = self.store.info(name).await else { return };
        let pieces = format!("$O.{}.C.{}", self.bucket, info.nuid);
        let about = format!("$O.{}.M.{}", self.bucket, URL_SAFE.encode(name));
        for subject in [pieces, about] {
            // What stays for want of a connection is removed by its age.
            let _ = self.stream.purge().filter(subject).await;
        }
    }
}

fn patience(bytes: u64) -> Duration {
    PATIENCE + Duration::from_secs(bytes >> 20)
}
