//! A table and a journal in which a hostile worker has written what it likes: every reader stays within bounds and comes
//! to an end. One function, run over chosen content in every `cargo test` and by the fuzz target `table` of `wire/fuzz`.

use mod_wsgi_scoreboard::{ClientId, Journal, Lease, RowState, RowWord, Shape, Table};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::FileExt;

/// Writes `data` over the shared memory behind `fd`, again and again until it is full, from word `from` on.
fn overwrite(fd: BorrowedFd<'_>, data: &[u8], from: u64) {
    let file = std::fs::File::from(fd.try_clone_to_owned().unwrap());
    let size = file.metadata().unwrap().len();
    let mut at = (from * 8).min(size);
    while at < size && !data.is_empty() {
        let n = data.len().min((size - at) as usize);
        file.write_all_at(&data[..n], at).unwrap();
        at += n as u64;
    }
}

/// `data`: six bytes that choose the shape and what is asked, then the content.
pub fn run(data: &[u8]) {
    let Some((head, content)) = data.split_first_chunk::<6>() else { return };
    let shape = Shape::for_group(1 + head[0] as u16 % 4, 1 + head[1] as u16 % 8, head[2] as u32 % 32);
    let (table, fd) = Table::create(shape).unwrap();
    let honest = Table::open(&fd, shape).unwrap();
    let generation = table.begin_slot(0);
    table.open_rows(0, generation);
    // One request is under way when the content changes below it.
    let lease = table.take(0, 0, 7).unwrap();
    overwrite(fd.as_fd(), content, head[3] as u64);
    // What a new server process does with it.
    if let Ok(opened) = Table::open(&fd, shape) {
        read(&opened, shape);
    }
    read(&honest, shape);
    let _ = honest.is_intact();
    use_lease(&honest, &lease);
    // A frame may name any row and any slot.
    let word = RowWord { generation: head[4] as u32, state: RowState::Sent, client: head[5] as u32 };
    for (slot, row) in [(0, 0), (head[4] as u16, head[5] as u16), (u16::MAX, u16::MAX)] {
        let stranger = Lease { slot, slot_generation: generation, row, word };
        // Only a worker is told its leases by others.
        let _ = table.claim(&stranger);
    }
    supervise(&table, shape, |client| client.is_multiple_of(2));
    journal(head, content);
}

/// All that a server process asks on its way.
fn read(table: &Table, shape: Shape) {
    for s in 0..shape.slots {
        let _ = (table.slot(s), table.pid(s), table.requests(s), table.aside(s));
        assert!(table.in_use(s) <= shape.rows as usize && table.running(s) <= shape.rows as usize);
        let (sent, running) = table.count_rows(s);
        assert!(sent + running <= shape.rows as usize);
        if let Some(lease) = table.take(s, u16::MAX, 3) {
            assert!(lease.slot == s && lease.row < shape.rows && lease.word.client == 3);
            assert!(table.is_sent(&lease) && !table.is_running(&lease));
            assert!(table.recall(&lease), "nobody else writes at this moment");
        }
    }
    let _ = (table.pool(), table.shape());
    table.set_wanted();
}

fn use_lease(table: &Table, lease: &Lease) {
    let _ = table.is_running(lease);
    let sent = table.is_sent(lease);
    // Taken back only if it is as it was left.
    assert_eq!(table.recall(lease), sent);
    assert!(!table.recall(lease));
}

/// All that the supervisor does with the rows of a worker that drains and dies.
fn supervise(table: &Table, shape: Shape, gone: impl Fn(ClientId) -> bool) {
    for s in 0..shape.slots {
        table.release_departed(s, &gone);
        let _ = table.repair_hints(s);
        assert!(table.drain_rows(s) <= shape.rows as usize);
        table.bury_rows(s, &gone);
        assert_eq!(table.bury_rows(s, |_| true), 0, "with every client gone nothing is left");
        let generation = table.begin_slot(s);
        table.open_rows(s, generation);
        let lease = table.take(s, 0, 9).expect("an opened slot has room, whatever was there before");
        assert!(table.claim(&lease) && table.finish(&lease));
    }
}

fn journal(head: &[u8; 6], content: &[u8]) {
    let threads = 1 + head[1] as u16 % 8;
    let (journal, fd) = Journal::create(threads).unwrap();
    overwrite(fd.as_fd(), content, 0);
    let entries = journal.entries();
    assert!(entries.len() <= threads as usize);
    assert!(entries.iter().all(|e| e.line.len() <= 1024));
}
