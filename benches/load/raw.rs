//! The lower bound: a server that writes prepared bytes to plain sockets, and does nothing else.
//!
//! One thread accepts the readers, and one thread for each publisher writes the body of every request to each socket of
//! the channel, one `write` each. No server that delivers each event with one write per connection can be cheaper.

use std::collections::HashMap;
use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, Mutex};

use crate::subscribers::SWITCHED;

/// The argument that makes the program run as this server.
pub(crate) const RAW: &str = "be-raw";

type Channels = Arc<Mutex<HashMap<String, Vec<TcpStream>>>>;

/// Runs as the server, and prints its address.
pub(crate) fn be_raw() {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    println!("raw on http://{}", listener.local_addr().expect("bound"));
    let channels = Channels::default();
    for stream in listener.incoming() {
        let stream = stream.expect("a connection");
        stream.set_nodelay(true).expect("TCP");
        let mut input = BufReader::new(stream.try_clone().expect("a descriptor"));
        let Some(head) = Head::read(&mut input) else {
            continue;
        };
        if head.length.is_some() {
            let channels = Arc::clone(&channels);
            std::thread::spawn(move || publish(head, input, stream, &channels));
        } else {
            subscribe(&head, stream, &channels);
        }
    }
}

/// What matters of a request's head.
struct Head {
    /// The last segment of the path.
    channel: String,
    length: Option<usize>,
    is_upgrade: bool,
}

impl Head {
    fn read(input: &mut impl BufRead) -> Option<Head> {
        let mut first = String::new();
        input
            .read_line(&mut first)
            .ok()
            .filter(|count| *count > 0)?;
        let path = first.split(' ').nth(1)?;
        let mut head = Head {
            channel: path.rsplit('/').next()?.to_owned(),
            length: None,
            is_upgrade: false,
        };
        loop {
            let mut line = String::new();
            input.read_line(&mut line).ok().filter(|count| *count > 0)?;
            match line.trim().to_lowercase().split_once(": ") {
                Some(("content-length", length)) => head.length = length.parse().ok(),
                Some(("upgrade", _)) => head.is_upgrade = true,
                Some(_) => {}
                None => return Some(head),
            }
        }
    }
}

fn subscribe(head: &Head, mut stream: TcpStream, channels: &Channels) {
    let answer = match head.is_upgrade {
        true => SWITCHED,
        false => "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n",
    };
    stream.write_all(answer.as_bytes()).expect("read");
    let mut channels = channels.lock().expect("whole");
    channels
        .entry(head.channel.clone())
        .or_default()
        .push(stream);
}

fn publish(first: Head, mut input: impl BufRead, mut stream: TcpStream, channels: &Channels) {
    let mut next = Some(first);
    let mut body = Vec::new();
    while let Some(head) = next {
        body.resize(head.length.unwrap_or(0), 0);
        if input.read_exact(&mut body).is_err() {
            return;
        }
        let mut channels = channels.lock().expect("whole");
        if let Some(readers) = channels.get_mut(&head.channel) {
            // A reader that has left is forgotten.
            readers.retain_mut(|reader| reader.write_all(&body).is_ok());
        }
        drop(channels);
        let answer = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok";
        if stream.write_all(answer).is_err() {
            return;
        }
        next = Head::read(&mut input);
    }
}
