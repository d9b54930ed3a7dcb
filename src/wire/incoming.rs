//! What comes from a worker, by ring and by pipe, in the order in which it was said.

use super::Page;
use super::arena::Place;
use super::frame::{Frame, FrameCodec, FrameError};
use super::message::Reply;
use super::ring::Record;
use bytes::{Bytes, BytesMut};
use std::ops::Range;
use std::sync::Arc;
use tokio_util::codec::Decoder;

/// So much is taken in at a time, for others to have the pool's lock in between.
const BATCH_REPLIES: usize = 512;
const BATCH_BYTES: usize = 256 * 1024;

/// The replies of one worker.
pub(crate) struct Incoming {
    /// What has come through the pipe.
    bytes: BytesMut,
    codec: FrameCodec<Reply>,
    page: Option<Arc<Page>>,
    /// How far the ring is read.
    head: u64,
    /// A frame from the pipe whose mark in the ring was not seen yet.
    early: Option<Frame<Reply>>,
    /// A mark was seen, and its frame is still to come.
    expects_frame: bool,
    /// How many records of the ring a bell may still come for: each has one at most.
    bells: u64,
    /// There was something in the ring when the pool was about to sleep, so there must be yet.
    was_kept_awake: bool,
    /// How many bodies were fetched from the arena.
    fetched: u64,
    max_message: u64,
}

/// Replies, to be gone through one after another. Its memory is meant to be used again.
#[derive(Default)]
pub(crate) struct Batch {
    scratch: Vec<u8>,
    replies: Vec<(Reply, Stored)>,
    /// How many of them say something of a task that goes on, and how many that one is done.
    pub(crate) reports: u64,
    pub(crate) answers: u64,
}

enum Stored {
    Scratch(Range<usize>),
    Own(Bytes),
}

impl Stored {
    fn is_empty(&self) -> bool {
        match self {
            Stored::Scratch(range) => range.is_empty(),
            Stored::Own(bytes) => bytes.is_empty(),
        }
    }

    fn bytes<'a>(&'a self, scratch: &'a [u8]) -> &'a [u8] {
        match self {
            Stored::Scratch(range) => &scratch[range.clone()],
            Stored::Own(bytes) => bytes,
        }
    }
}

/// The body of a reply.
pub(crate) enum Body<'a> {
    Borrowed(&'a [u8]),
    Own(Bytes),
}

impl Body<'_> {
    pub(crate) fn as_slice(&self) -> &[u8] {
        match self {
            Body::Borrowed(bytes) => bytes,
            Body::Own(bytes) => bytes,
        }
    }

    pub(crate) fn into_bytes(self) -> Bytes {
        match self {
            Body::Borrowed(bytes) => Bytes::copy_from_slice(bytes),
            Body::Own(bytes) => bytes,
        }
    }
}

impl Batch {
    pub(crate) fn is_empty(&self) -> bool {
        self.replies.is_empty()
    }

    fn push(&mut self, reply: Reply, stored: Stored) {
        match reply {
            Reply::Progress { .. } | Reply::Began { .. } => self.reports += 1,
            Reply::Value { .. } | Reply::Fault { .. } | Reply::Part { .. } => self.answers += 1,
            _ => {}
        }
        self.replies.push((reply, stored));
    }

    pub(crate) fn drain(&mut self) -> impl Iterator<Item = (Reply, Body<'_>)> {
        let scratch = &self.scratch;
        self.replies.drain(..).map(move |(reply, stored)| {
            let body = match stored {
                Stored::Scratch(range) => Body::Borrowed(&scratch[range]),
                Stored::Own(bytes) => Body::Own(bytes),
            };
            (reply, body)
        })
    }
}

impl Incoming {
    pub(crate) fn new(page: Option<Arc<Page>>, max_message: u64, capacity: usize) -> Incoming {
        Incoming {
            bytes: BytesMut::with_capacity(capacity),
            codec: FrameCodec::new(max_message),
            page,
            head: 0,
            early: None,
            expects_frame: false,
            bells: 0,
            was_kept_awake: false,
            fetched: 0,
            max_message,
        }
    }

    /// Where to read the pipe to, with room for so many bytes.
    pub(crate) fn buffer(&mut self, room: usize) -> &mut BytesMut {
        if self.bytes.capacity() - self.bytes.len() < room / 2 {
            self.bytes.reserve(room);
        }
        &mut self.bytes
    }

    /// The next frame of the pipe, before the ring is in use.
    pub(crate) fn next_frame(&mut self) -> Result<Option<Frame<Reply>>, FrameError> {
        self.codec.decode(&mut self.bytes)
    }

    /// Gathers what has come. What came before an error is in the batch.
    pub(crate) fn gather(&mut self, batch: &mut Batch) -> Result<(), FrameError> {
        batch.scratch.clear();
        (batch.reports, batch.answers) = (0, 0);
        // Nobody knows yet whether these were asked for, so little is made of many that name one place.
        let mut fetched = 0;
        while batch.replies.len() < BATCH_REPLIES && batch.scratch.len() + fetched < BATCH_BYTES {
            let Some((reply, stored)) = self.next(&mut batch.scratch)? else { break };
            // It would take up memory for nothing, and what shares its buffer would keep it.
            if !stored.is_empty() && !reply.may_have_body() {
                return Err(FrameError::Garbled);
            }
            self.check_size(&reply, stored.bytes(&batch.scratch))?;
            let stored = match reply {
                Reply::Value { place: Some(place), .. } | Reply::Item { place: Some(place), .. } => {
                    let body = self.fetch(place)?;
                    fetched += body.len();
                    Stored::Own(body)
                }
                _ => stored,
            };
            batch.push(reply, stored);
        }
        if let Some(page) = &self.page {
            page.release(self.head);
        }
        Ok(())
    }

    /// A frame may be longer than a value, as others have heads that are long.
    fn check_size(&self, reply: &Reply, body: &[u8]) -> Result<(), FrameError> {
        let value = match reply {
            Reply::Value { .. } => body,
            // Behind the byte that says which kind it is; another kind than a value is a fault.
            Reply::Part { .. } => body.strip_prefix(&[0]).unwrap_or_default(),
            _ => return Ok(()),
        };
        let size = value.len() as u64;
        if size > self.max_message { Err(FrameError::TooLong(size)) } else { Ok(()) }
    }

    fn next(&mut self, scratch: &mut Vec<u8>) -> Result<Option<(Reply, Stored)>, FrameError> {
        let Some(page) = &self.page else {
            return Ok(self.next_frame()?.map(own));
        };
        if !self.expects_frame {
            let start = scratch.len();
            let record = page.pop(&mut self.head, scratch).map_err(|_| FrameError::Garbled)?;
            let was_kept_awake = std::mem::take(&mut self.was_kept_awake);
            match record {
                Some(Record::Here(_)) => {
                    self.bells += 1;
                    return parse(scratch, start).map(Some);
                }
                Some(Record::InPipe) => self.expects_frame = true,
                None if was_kept_awake => return Err(FrameError::Garbled),
                None if self.look_ahead()? => return self.next(scratch),
                None => return Ok(None),
            }
        }
        let frame = match self.early.take() {
            Some(frame) => Some(frame),
            None => self.next_but_bells()?,
        };
        self.expects_frame = frame.is_none();
        Ok(frame.map(own))
    }

    /// The ring is empty: takes the bells out of the pipe. If there is a frame, its mark has been
    /// written to the ring just now, and that is to be looked at again.
    fn look_ahead(&mut self) -> Result<bool, FrameError> {
        if self.early.is_some() {
            return Err(FrameError::Garbled);
        }
        self.early = self.next_but_bells()?;
        Ok(self.early.is_some())
    }

    fn next_but_bells(&mut self) -> Result<Option<Frame<Reply>>, FrameError> {
        loop {
            match self.next_frame()? {
                // The record that it rings for is older, and read. So a worker cannot keep the pool
                // awake by ringing alone.
                Some(Frame { head: Reply::Bell, .. }) => {
                    self.bells = self.bells.checked_sub(1).ok_or(FrameError::Garbled)?;
                }
                frame => return Ok(frame),
            }
        }
    }

    fn fetch(&mut self, place: Place) -> Result<Bytes, FrameError> {
        if place.bytes > self.max_message {
            return Err(FrameError::TooLong(place.bytes));
        }
        let page = self.page.as_ref().ok_or(FrameError::Garbled)?;
        self.fetched += 1;
        page.read_result(self.fetched, place).map(Bytes::from).ok_or(FrameError::Garbled)
    }

    /// Whether the pool may sleep until something comes through the pipe. To be followed by
    /// [`wake`](Self::wake).
    pub(crate) fn may_sleep(&mut self) -> bool {
        match &self.page {
            // The frame that is awaited comes through the pipe, whatever else is in the ring.
            Some(_) if self.expects_frame => true,
            Some(page) => {
                let may_sleep = page.sleep(self.head);
                self.was_kept_awake = !may_sleep;
                may_sleep
            }
            None => true,
        }
    }

    pub(crate) fn wake(&self) {
        if let Some(page) = &self.page {
            page.wake();
        }
    }
}

fn own(frame: Frame<Reply>) -> (Reply, Stored) {
    (frame.head, Stored::Own(frame.body))
}

/// Takes apart a record that was appended to the scratch buffer.
fn parse(scratch: &[u8], start: usize) -> Result<(Reply, Stored), FrameError> {
    let (reply, body) = postcard::take_from_bytes(&scratch[start..]).map_err(FrameError::BadHead)?;
    Ok((reply, Stored::Scratch(scratch.len() - body.len()..scratch.len())))
}

#[cfg(all(test, not(miri)))]
mod tests {
    use super::super::write_frame;
    use super::*;
    use std::os::fd::AsFd;
    use std::sync::atomic::Ordering;

    const MAX: u64 = 64 << 20;

    struct Scene {
        incoming: Incoming,
        /// The worker's view.
        page: Page,
        tail: u64,
    }

    impl Scene {
        fn new() -> Scene {
            let (page, file) = Page::create().unwrap();
            let incoming = Incoming::new(Some(Arc::new(page)), MAX, 1024);
            Scene { incoming, page: Page::open(file.as_fd()).unwrap(), tail: 0 }
        }

        fn push(&mut self, reply: &Reply) {
            self.page.push(&mut self.tail, &postcard::to_stdvec(reply).unwrap()).unwrap();
        }

        fn write(&mut self, reply: &Reply) {
            let mut frame = Vec::new();
            write_frame(reply, 0, &mut frame);
            self.incoming.bytes.extend_from_slice(&frame);
        }

        fn gather(&mut self) -> Result<usize, FrameError> {
            let mut batch = Batch::default();
            self.incoming.gather(&mut batch)?;
            Ok(batch.drain().map(|(_, body)| body.as_slice().len()).sum())
        }
    }

    #[test]
    fn a_place_that_is_named_again_and_again_is_not_copied_for_each() {
        let mut scene = Scene::new();
        let place = Some(Place { at: 0, bytes: 32 << 20 });
        for seq in 0..500 {
            scene.push(&Reply::Value { seq, is_worn: false, ran: 0, place });
        }
        assert_eq!(scene.gather().unwrap(), 32 << 20);
    }

    #[test]
    fn no_value_is_longer_than_it_may_be() {
        const SHORT: u64 = 1000;
        let value = || Reply::Value { seq: 1, is_worn: false, ran: 0, place: None };
        let part = || Reply::Part { seq: 1 };
        let body = |kind: Option<u8>, length: u64| [kind.as_slice(), &vec![7; length as usize]].concat();
        let cases = [
            (value(), body(None, SHORT), true),
            (value(), body(None, SHORT + 1), false),
            (part(), body(Some(0), SHORT), true),
            (part(), body(Some(0), SHORT + 1), false),
            // A fault is as long as it is.
            (part(), body(Some(1), SHORT + 1), true),
        ];
        for has_page in [true, false] {
            for (reply, body, is_taken) in &cases {
                let (pool, file) = Page::create().unwrap();
                let page = Page::open(file.as_fd()).unwrap();
                let mut incoming = Incoming::new(has_page.then(|| Arc::new(pool)), SHORT, 1000);
                match has_page {
                    true => {
                        let record = [&postcard::to_stdvec(reply).unwrap(), &body[..]].concat();
                        page.push(&mut 0, &record).unwrap();
                    }
                    false => {
                        let mut frame = Vec::new();
                        write_frame(reply, body.len(), &mut frame);
                        frame.extend_from_slice(body);
                        incoming.buffer(frame.len()).extend_from_slice(&frame);
                    }
                }
                let gathered = incoming.gather(&mut Batch::default());
                assert_eq!(gathered.is_ok(), *is_taken, "{reply:?}");
            }
        }
    }

    #[test]
    fn a_bell_comes_for_a_record_or_is_none() {
        let mut scene = Scene::new();
        scene.push(&Reply::Skipped { seq: 1 });
        scene.write(&Reply::Bell);
        scene.gather().unwrap();
        scene.gather().unwrap();
        scene.write(&Reply::Bell);
        assert!(matches!(scene.gather(), Err(FrameError::Garbled)));
    }

    #[test]
    fn what_keeps_the_pool_awake_is_there_when_it_looks() {
        let mut scene = Scene::new();
        assert!(scene.incoming.may_sleep());
        scene.incoming.wake();
        scene.push(&Reply::Skipped { seq: 1 });
        assert!(!scene.incoming.may_sleep());
        scene.gather().unwrap();
        let tail = &scene.page.words()[Page::RING_WORDS[0]];
        let empty = tail.fetch_add(2, Ordering::SeqCst);
        assert!(!scene.incoming.may_sleep());
        tail.store(empty, Ordering::SeqCst);
        assert!(matches!(scene.gather(), Err(FrameError::Garbled)));
    }
}
