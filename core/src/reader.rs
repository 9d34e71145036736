//! The frames of an answer, taken from bytes as they come and in whatever pieces: for servers that read into buffers of
//! their own and do not wait. Body bytes stay where they are; what is small (headers of frames, LOG, FILE, ABORT) is
//! gathered here.

use mod_wsgi_wire::decode::{self, Error, Response};
use mod_wsgi_wire::frame::{AbortReason, Header, Kind, Level};
use mod_wsgi_wire::limits;

/// What the next bytes are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Item {
    /// The last so many of the bytes used belong to the response's body.
    Data(usize),
    /// A file follows, whose descriptor came with the bytes.
    File {
        offset: u64,
        len: u64,
    },
    /// A record; its text is [`Reader::text`].
    Log(Level),
    Abort(AbortReason),
    /// The application asks for the request's body.
    Continue,
    /// A frame without content; look at [`Reader::ended`] and [`Reader::done`].
    Mark,
    /// All bytes are used and no frame is whole.
    More,
}

/// What the beginning of an answer is.
#[derive(Debug)]
pub enum Begin<'a> {
    /// The head, and how many bytes it takes; what follows goes to [`Reader::next`].
    Head(Response<'a>, usize),
    /// Something else, and how many bytes it takes.
    Other(Item, usize),
    /// So many bytes are needed at least, counted from the first.
    More(usize),
}

#[derive(Debug)]
enum State {
    /// Between frames; some bytes of a header may be in `part`.
    Header,
    /// Inside DATA, or the data of RESPONSE: so many bytes are left.
    Body(Header, usize),
    /// Inside any other frame; its payload is gathered in `part`.
    Small(Header),
}

/// One answer.
#[derive(Debug)]
pub struct Reader {
    state: State,
    part: Vec<u8>,
    text: Vec<u8>,
    head: bool,
    ended: bool,
    done: bool,
    /// FILE frames so far.
    files: u32,
}

impl Default for Reader {
    fn default() -> Reader {
        Reader {
            state: State::Header,
            part: Vec::new(),
            text: Vec::new(),
            head: false,
            ended: false,
            done: false,
            files: 0,
        }
    }
}

impl Reader {
    /// The response is whole.
    pub fn ended(&self) -> bool {
        self.ended
    }

    /// The worker is free; nothing more will come.
    pub fn done(&self) -> bool {
        self.done
    }

    /// Text of the LOG frame given last.
    pub fn text(&self) -> &[u8] {
        &self.text
    }

    /// Between two frames: every byte so far belonged to a whole one.
    pub fn is_between(&self) -> bool {
        matches!(self.state, State::Header) && self.part.is_empty()
    }

    /// Looks at the beginning of an answer, all of which is in `bytes`, until the head has come.
    pub fn begin<'a>(&mut self, bytes: &'a [u8]) -> Result<Begin<'a>, Error> {
        let Some(h) = decode::header(bytes)? else { return Ok(Begin::More(limits::HEADER)) };
        self.check(&h)?;
        let payload = &bytes[limits::HEADER..];
        if h.kind == Kind::Response {
            let Some((response, used)) = decode::response_head(&payload[..payload.len().min(h.len)], h.len)? else {
                // The fixed part says how long the head is; until it is there, any more will do.
                return Ok(Begin::More(limits::HEADER + head_end(payload).unwrap_or(12).min(h.len)));
            };
            self.head = true;
            let left = h.len - used;
            if left == 0 {
                self.finish(&h);
            } else {
                self.state = State::Body(h, left);
            }
            return Ok(Begin::Head(response, limits::HEADER + used));
        }
        let total = limits::HEADER + h.len;
        let Some(payload) = bytes.get(limits::HEADER..total) else { return Ok(Begin::More(total)) };
        let item = self.small(&h, payload)?;
        self.finish(&h);
        Ok(Begin::Other(item, total))
    }

    /// Whether `flags` of the head's own frame end the response with it: an exact list or tuple, complete at once.
    pub fn ends_with_head(&self) -> Option<u64> {
        match &self.state {
            State::Body(h, left) if h.kind == Kind::Response && h.is_end() => Some(*left as u64),
            State::Header if self.head && self.ended => Some(0),
            _ => None,
        }
    }

    /// Takes the next item; gives how many of `bytes` it used.
    pub fn next(&mut self, bytes: &[u8]) -> Result<(usize, Item), Error> {
        let mut used = 0;
        loop {
            let rest = &bytes[used..];
            match &self.state {
                State::Header => {
                    let n = (limits::HEADER - self.part.len()).min(rest.len());
                    self.part.extend_from_slice(&rest[..n]);
                    used += n;
                    let Some(h) = decode::header(&self.part)? else { return Ok((used, Item::More)) };
                    self.part.clear();
                    self.check(&h)?;
                    if matches!(h.kind, Kind::Response) {
                        return Err(Error::Unexpected { kind: h.kind });
                    }
                    self.state =
                        if h.kind == Kind::Data && h.len > 0 { State::Body(h, h.len) } else { State::Small(h) };
                }
                State::Body(h, left) => {
                    let (h, n) = (*h, (*left).min(rest.len()));
                    if n == 0 {
                        return Ok((used, Item::More));
                    }
                    self.state = State::Body(h, *left - n);
                    if let State::Body(_, 0) = self.state {
                        self.finish(&h);
                    }
                    return Ok((used + n, Item::Data(n)));
                }
                State::Small(h) => {
                    let h = *h;
                    let n = (h.len - self.part.len()).min(rest.len());
                    self.part.extend_from_slice(&rest[..n]);
                    used += n;
                    if self.part.len() < h.len {
                        return Ok((used, Item::More));
                    }
                    let payload = std::mem::take(&mut self.part);
                    let item = self.small(&h, &payload)?;
                    self.part = payload;
                    self.part.clear();
                    self.finish(&h);
                    return Ok((used, item));
                }
            }
        }
    }

    /// Whether a frame may come now.
    fn check(&self, h: &Header) -> Result<(), Error> {
        let allowed = match h.kind {
            Kind::Log => !self.done,
            Kind::Done => !self.done,
            Kind::Data | Kind::File | Kind::End => self.head && !self.ended,
            Kind::Abort | Kind::Continue => !self.ended,
            Kind::Response => !self.head && !self.ended,
            _ => false,
        };
        if allowed { Ok(()) } else { Err(Error::Unexpected { kind: h.kind }) }
    }

    fn small(&mut self, h: &Header, payload: &[u8]) -> Result<Item, Error> {
        Ok(match h.kind {
            Kind::File => {
                self.files += 1;
                if self.files > limits::MAX_FILES {
                    return Err(Error::Unexpected { kind: h.kind });
                }
                let (offset, len) = decode::file(payload)?;
                Item::File { offset, len }
            }
            Kind::Log => {
                let (level, text) = decode::log(payload)?;
                self.text.clear();
                self.text.extend_from_slice(text);
                Item::Log(level)
            }
            Kind::Abort => Item::Abort(decode::abort(payload)?),
            Kind::Continue => Item::Continue,
            _ => Item::Mark,
        })
    }

    fn finish(&mut self, h: &Header) {
        self.state = State::Header;
        self.ended |= h.is_end();
        self.done |= h.is_done();
    }
}

/// Where the head of a RESPONSE ends in its payload, when the fixed part is there.
fn head_end(payload: &[u8]) -> Option<usize> {
    let n = payload.get(8..12)?;
    Some(12 + u32::from_le_bytes([n[0], n[1], n[2], n[3]]) as usize)
}

#[cfg(test)]
mod tests {
    use super::*;
    use mod_wsgi_wire::encode;
    use mod_wsgi_wire::frame::flags;
    use proptest::prelude::*;

    fn head(out: &mut Vec<u8>, data: &[u8], bits: u8) {
        let fields: [(&[u8], &[u8]); 2] = [(b"Content-Type", b"text/plain"), (b"X-Long", &[b'x'; 300])];
        encode::response(out, 200, b"OK", fields.into_iter(), data, bits).unwrap();
    }

    /// Reads an answer that comes in pieces of the given sizes into a growing buffer, as a server does.
    fn read(bytes: &[u8], sizes: &[usize]) -> (Vec<u8>, Vec<String>, Reader) {
        let mut r = Reader::default();
        let (mut body, mut seen, mut buf, mut at) = (Vec::new(), Vec::new(), Vec::new(), 0);
        let (mut sizes, mut in_body) = (sizes.iter().cycle(), false);
        while at < bytes.len() {
            let n = (*sizes.next().unwrap()).min(bytes.len() - at);
            buf.extend_from_slice(&bytes[at..at + n]);
            at += n;
            while !in_body && !buf.is_empty() {
                match r.begin(&buf).unwrap() {
                    Begin::More(need) => {
                        assert!(need > buf.len(), "asks for more than there is");
                        break;
                    }
                    Begin::Other(item, used) => {
                        seen.push(format!("{item:?} {}", String::from_utf8_lossy(r.text())));
                        buf.drain(..used);
                    }
                    Begin::Head(h, used) => {
                        seen.push(format!("{} {}", h.status, h.headers().count()));
                        in_body = true;
                        buf.drain(..used);
                    }
                }
            }
            if !in_body {
                continue;
            }
            loop {
                let (used, item) = r.next(&buf).unwrap();
                match item {
                    Item::Data(n) => body.extend_from_slice(&buf[used - n..used]),
                    Item::More => {
                        assert_eq!(used, buf.len());
                        buf.clear();
                        break;
                    }
                    item => seen.push(format!("{item:?} {}", String::from_utf8_lossy(r.text()))),
                }
                buf.drain(..used);
            }
        }
        (body, seen, r)
    }

    fn answer() -> Vec<u8> {
        let mut out = Vec::new();
        encode::log(&mut out, Level::Info, b"before");
        head(&mut out, b"first,", 0);
        out.extend(encode::data_header(7, 0));
        out.extend_from_slice(b"second,");
        encode::log(&mut out, Level::Warn, b"amid");
        out.extend(encode::data_header(0, 0));
        out.extend(encode::data_header(5, flags::END));
        out.extend_from_slice(b"third");
        encode::log(&mut out, Level::Error, b"after");
        encode::empty(&mut out, Kind::Done, 0);
        out
    }

    proptest! {
        /// The same comes out, however the bytes are cut.
        #[test]
        fn pieces_do_not_matter(sizes in proptest::collection::vec(1usize..40, 1..8)) {
            let (body, seen, r) = read(&answer(), &sizes);
            prop_assert_eq!(body, b"first,second,third");
            prop_assert_eq!(
                seen,
                ["Log(Info) before", "200 2", "Log(Warn) amid", "Mark amid", "Log(Error) after", "Mark after"]
            );
            prop_assert!(r.ended() && r.done() && r.is_between());
        }
    }

    #[test]
    fn an_answer_complete_at_once_is_known_by_its_head() {
        for data in [&b""[..], b"hello"] {
            let mut out = Vec::new();
            head(&mut out, data, flags::END | flags::DONE);
            let mut r = Reader::default();
            let Begin::Head(h, used) = r.begin(&out).unwrap() else { panic!() };
            assert_eq!(h.data, data);
            assert_eq!(r.ends_with_head(), Some(data.len() as u64));
            if !data.is_empty() {
                assert_eq!(r.next(&out[used..]).unwrap(), (5, Item::Data(5)));
            }
            assert!(r.ended() && r.done());
        }
    }

    #[test]
    fn frames_out_of_order_are_refused() {
        let unexpected = |r: &mut Reader, b: &[u8]| matches!(r.next(b), Err(Error::Unexpected { .. }));
        let mut data = encode::data_header(1, flags::END | flags::DONE).to_vec();
        data.push(b'x');
        assert!(matches!(Reader::default().begin(&data), Err(Error::Unexpected { kind: Kind::Data })));
        let mut out = Vec::new();
        head(&mut out, b"", flags::END);
        let mut r = Reader::default();
        r.begin(&out).unwrap();
        assert!(unexpected(&mut r, &data), "data after the end");
        let mut r = Reader::default();
        r.begin(&out).unwrap();
        assert!(unexpected(&mut r, &out), "a second head");
        let mut done = Vec::new();
        encode::empty(&mut done, Kind::Done, 0);
        let mut r = Reader::default();
        r.begin(&out).unwrap();
        assert_eq!(r.next(&done).unwrap(), (8, Item::Mark));
        assert!(unexpected(&mut r, &done), "after DONE");
    }

    #[test]
    fn files_without_end_are_refused() {
        let mut out = Vec::new();
        head(&mut out, b"", 0);
        let mut r = Reader::default();
        let Begin::Head(..) = r.begin(&out).unwrap() else { panic!() };
        let mut file = Vec::new();
        encode::file(&mut file, 0, 1, 0);
        for _ in 0..limits::MAX_FILES {
            assert!(r.next(&file).is_ok());
        }
        assert!(matches!(r.next(&file), Err(Error::Unexpected { kind: Kind::File })));
    }

    #[test]
    fn a_file_and_an_abort_are_items() {
        let mut out = Vec::new();
        head(&mut out, b"", 0);
        encode::file(&mut out, 7, 9, flags::END);
        encode::abort(&mut out, AbortReason::NotRun, flags::DONE);
        let mut r = Reader::default();
        let Begin::Head(_, used) = r.begin(&out).unwrap() else { panic!() };
        assert_eq!(r.ends_with_head(), None);
        assert_eq!(r.next(&out[used..]).unwrap().1, Item::File { offset: 7, len: 9 });
        assert!(r.ended() && !r.done());
        let mut out = Vec::new();
        encode::abort(&mut out, AbortReason::NotRun, flags::DONE);
        let mut r = Reader::default();
        assert!(matches!(r.begin(&out).unwrap(), Begin::Other(Item::Abort(AbortReason::NotRun), 9)));
        assert!(r.done());
    }
}
