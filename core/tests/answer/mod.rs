//! An answer of a worker that writes what it likes, taken as nginx takes it: in pieces, through the reader and the framer.
//! One function, run over the corpus of the decoders in every `cargo test` and by the fuzz target `answer` of `wire/fuzz`.

use mod_wsgi_core::reader::{Begin, Item, Reader};
use mod_wsgi_core::response::Framer;

/// What came of an answer.
#[derive(Debug, Default, PartialEq)]
struct Outcome {
    /// Items but for data, with their texts.
    items: Vec<String>,
    /// Bytes of the body in the worker's frames, and those that the client gets.
    body: Vec<u8>,
    passed: u64,
    /// Bytes used; 0 once it is refused.
    used: usize,
    refused: bool,
    ended: bool,
    done: bool,
}

/// `data`: a byte for the kind of request, two that say how the rest is cut, the rest.
pub fn run(data: &[u8]) {
    let Some((&[kind, first, second], bytes)) = data.split_first_chunk::<3>() else { return };
    let head_request = kind % 2 == 1;
    let whole = take(bytes, head_request, &mut std::iter::repeat(bytes.len().max(1)));
    let sizes = [1 + first as usize, 1 + second as usize];
    let cut = take(bytes, head_request, &mut sizes.into_iter().cycle());
    // However it is cut the same comes out; where it is refused, the same before that.
    assert_eq!(whole, cut);
    assert!(whole.passed <= whole.body.len() as u64);
    assert!(!head_request || whole.passed == 0);
}

fn take(bytes: &[u8], head_request: bool, sizes: &mut dyn Iterator<Item = usize>) -> Outcome {
    let (mut reader, mut out) = (Reader::default(), Outcome::default());
    let mut framer: Option<Framer> = None;
    // What has come and is not used; where the next piece begins.
    let (mut held, mut at) = (Vec::new(), 0);
    while at < bytes.len() && !out.refused && !reader.done() {
        let n = sizes.next().unwrap_or(1).min(bytes.len() - at);
        held.extend_from_slice(&bytes[at..at + n]);
        at += n;
        while !held.is_empty() && !out.refused && !reader.done() {
            let used = match &mut framer {
                None => begin(&mut reader, &held, head_request, &mut framer, &mut out),
                Some(framer) => go_on(&mut reader, &held, framer, &mut out),
            };
            let Some(used) = used else { break };
            held.drain(..used);
            out.used += used;
        }
    }
    if out.refused {
        // how much of the refused frame had come is a matter of the pieces
        out.used = 0;
    }
    (out.ended, out.done) = (reader.ended(), reader.done());
    out
}

/// The head, or what comes before it; gives the bytes used, `None` when more are needed or it is refused.
fn begin(
    reader: &mut Reader,
    held: &[u8],
    head_request: bool,
    framer: &mut Option<Framer>,
    out: &mut Outcome,
) -> Option<usize> {
    let (head, used) = match reader.begin(held) {
        Err(_) => {
            out.refused = true;
            return None;
        }
        Ok(Begin::More(need)) => {
            assert!(need > held.len(), "asks for more than there is");
            return None;
        }
        Ok(Begin::Other(item, used)) => {
            out.items.push(describe(reader, &item));
            return Some(used);
        }
        Ok(Begin::Head(head, used)) => (head, used),
    };
    assert!(used <= held.len());
    let whole = reader.ends_with_head();
    match Framer::new(head_request, head.status, head.reason, head.headers(), whole) {
        Err(e) => {
            out.items.push(e.to_string());
            out.refused = true;
        }
        Ok(f) => {
            let fine = |b: &[u8]| !b.iter().any(|c| matches!(c, b'\r' | b'\n' | 0));
            assert!(fine(head.reason) && head.headers().all(|(name, value)| fine(name) && fine(value)));
            out.items.push(format!("{} {:?}", head.status, f.content_length()));
            *framer = Some(f);
        }
    }
    Some(used)
}

/// The body, and what comes between; gives the bytes used, `None` when it is refused.
fn go_on(reader: &mut Reader, held: &[u8], framer: &mut Framer, out: &mut Outcome) -> Option<usize> {
    let Ok((used, item)) = reader.next(held) else {
        out.refused = true;
        return None;
    };
    assert!(used > 0 && used <= held.len(), "gets on");
    match item {
        Item::Data(n) => {
            out.body.extend_from_slice(&held[used - n..used]);
            out.passed += framer.accept(n as u64);
        }
        Item::More => assert_eq!(used, held.len()),
        item => out.items.push(describe(reader, &item)),
    }
    if let Some(declared) = framer.content_length() {
        assert!(out.passed <= declared);
    }
    Some(used)
}

fn describe(reader: &Reader, item: &Item) -> String {
    match item {
        Item::Log(level) => format!("{level:?} {}", String::from_utf8_lossy(reader.text())),
        other => format!("{other:?}"),
    }
}
