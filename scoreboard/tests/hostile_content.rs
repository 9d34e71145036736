//! Content that no worker of ours writes, see `content`.

mod content;

#[test]
fn chosen_content_is_read_within_bounds() {
    for byte in [0u8, 1, 2, 3, 4, 0x7f, 0x80, 0xff] {
        for from in [0u8, 1, 2, 8, 64, 255] {
            for shape in 0..4 {
                let mut data = vec![shape, 3 * shape, 9 * shape, from, byte, byte];
                data.extend([byte; 64]);
                content::run(&data);
            }
        }
    }
    content::run(&[]);
    content::run(&[1, 2, 3, 4, 5, 6]);
}

#[test]
fn random_content_is_read_within_bounds() {
    let mut state = 0x9e37_79b9_7f4a_7c15u64;
    let mut data = Vec::new();
    for n in 0..1500 {
        data.clear();
        for _ in 0..4 + n % 120 {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            // Half of the words are such as real ones look like: small generations, valid states.
            let word = if state & 1 == 0 { state } else { (state & 0x3_0700_000f) << 8 };
            data.extend(word.to_le_bytes());
        }
        content::run(&data);
    }
}
