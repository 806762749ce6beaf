//! An HTTP server, a thread for each connection: parses, builds an answer out of maps and strings, sorts, formats.
//! `server PORT`

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};

struct Item {
    name: String,
    price: f64,
}

trait Rule {
    fn apply(&self, item: &Item) -> f64;
}

struct Discount;

impl Rule for Discount {
    fn apply(&self, item: &Item) -> f64 {
        item.price * 0.9 + item.name.len() as f64
    }
}

fn catalogue(mut seed: u32) -> BTreeMap<String, Vec<Item>> {
    let mut items: BTreeMap<String, Vec<Item>> = BTreeMap::new();
    for _ in 0..400 {
        seed = seed.wrapping_mul(1664525).wrapping_add(1013904223);
        let item = Item { name: seed.to_string(), price: f64::from(seed % 1000) / 10.0 };
        items.entry(format!("item {}", seed % 10007)).or_default().push(item);
    }
    items
}

fn answer(seed: u32, rule: &dyn Rule) -> String {
    let items = catalogue(seed);
    let mut best: Vec<_> =
        items.iter().map(|(name, same)| (name, same.iter().map(|item| rule.apply(item)).sum::<f64>())).collect();
    best.sort_by(|a, b| b.1.total_cmp(&a.1));
    best.iter().fold(String::new(), |mut text, (name, price)| {
        let _infallible = writeln!(text, "{{\"name\":\"{name}\",\"price\":{price}}}");
        text
    })
}

fn serve(mut connection: TcpStream) -> std::io::Result<()> {
    let (mut request, mut bytes, mut seed) = (Vec::new(), [0; 4096], 1);
    let rule: Box<dyn Rule> = Box::new(Discount);
    loop {
        let Some(end) = request.windows(4).position(|part| part == b"\r\n\r\n") else {
            match connection.read(&mut bytes)? {
                0 => return Ok(()),
                got => request.extend_from_slice(&bytes[..got]),
            }
            continue;
        };
        request.drain(..end + 4);
        let body = answer(seed, &*rule);
        seed += 1;
        write!(connection, "HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{body}", body.len())?;
    }
}

fn main() {
    let port = std::env::args().nth(1).and_then(|port| port.parse().ok()).expect("a port");
    let listener = TcpListener::bind(("127.0.0.1", port)).expect("a port that is free");
    for connection in listener.incoming().flatten() {
        std::thread::spawn(move || serve(connection));
    }
}
