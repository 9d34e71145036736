//! Answers that no worker of ours gives, see `answer`.

mod answer;

use std::path::Path;

/// The corpus of the decoders, as whole answers, one after the other, cut short and with single bytes changed.
#[test]
fn the_corpus_is_taken_in_any_pieces() {
    let corpus = Path::new(env!("CARGO_MANIFEST_DIR")).join("../wire/fuzz/corpus");
    let mut files = 0;
    for target in ["frame", "answer"] {
        for entry in std::fs::read_dir(corpus.join(target)).unwrap() {
            let mut data = std::fs::read(entry.unwrap().path()).unwrap();
            if target == "frame" {
                data = [&[0, 0, 0], &data[..]].concat();
            }
            for (kind, first, second) in [(0, 0, 0), (1, 0, 6), (0, 1, 30), (1, 255, 2)] {
                data[..3].copy_from_slice(&[kind, first, second]);
                answer::run(&data);
            }
            for n in 3..data.len().min(256) {
                answer::run(&data[..n]);
                for bits in [0x01, 0x80, 0xff] {
                    data[n] ^= bits;
                    answer::run(&data);
                    data[n] ^= bits;
                }
            }
            files += 1;
        }
    }
    assert!(files > 20, "{files} files");
}
