//! `--share proxy` before real servers, unmodified, which know nothing but `PORT`.

use std::fs;
use std::io::{Read, Write};
use std::net::TcpStream;

use crate::beds::{command, skip};
use crate::proxied::Proxied;
use crate::support::LIMIT;

/// Two workers of `words` in a folder with an index page, and what they answer.
fn serves(tool: &str, files: &[(&str, &str)], words: &[&str], args: &[&str], want: &str) {
    if let Err(reason) = command(tool) {
        return skip(&format!("--share proxy with {tool}"), &reason);
    }
    let dir = tempfile::tempdir().unwrap();
    for (name, text) in files {
        fs::write(dir.path().join(name), text).unwrap();
    }
    let home = dir.path().display().to_string();
    let args = [args, &["--chdir", &home]].concat();
    let mut proxied = Proxied::of(2, &args, words, &[("HOME", &home)]);
    proxied.all_ready(2);
    for _ in 0..4 {
        let mut stream = TcpStream::connect(proxied.address).unwrap();
        stream.set_read_timeout(Some(LIMIT)).unwrap();
        stream.write_all(b"GET / HTTP/1.0\r\nHost: x\r\n\r\n").unwrap();
        let mut text = String::new();
        stream.read_to_string(&mut text).unwrap();
        assert!(text.contains(" 200 ") && text.contains(want), "{text}");
    }
    assert_eq!(proxied.count("accepted").iter().sum::<u64>(), 4);
    assert_eq!(proxied.count("failed"), [0, 0]);
    proxied.run.stop();
}

const PAGE: (&str, &str) = ("index.html", "a page\n");

#[test]
fn python() {
    let line = "exec python3 -m http.server --bind 127.0.0.1 $PORT";
    serves("python3", &[PAGE], &["sh", "-c", line], &[], "a page");
}

#[test]
fn php() {
    serves("php", &[PAGE], &["php", "-S", "127.0.0.1:{port}"], &["--template"], "a page");
}

#[test]
fn npm_start() {
    let package =
        r#"{ "name": "page", "version": "1.0.0", "scripts": { "start": "node server.js" } }"#;
    let server = "require('http').createServer((_, answer) => answer.end('by npm')).listen(process.env.PORT)";
    let files = [("package.json", package), ("server.js", server)];
    serves("npm", &files, &["npm", "start"], &[], "by npm");
}

#[test]
fn node_at_a_unix_socket() {
    let server = "require('http').createServer((_, answer) => answer.end('by path')).listen(process.env.PORT)";
    let args = ["--share", "proxy", "--upstream", "unix"];
    serves("node", &[("server.js", server)], &["node", "server.js"], &args, "by path");
}

#[test]
fn java() {
    let server = r#"
import com.sun.net.httpserver.HttpServer;
import java.net.InetSocketAddress;
public class Main {
    public static void main(String[] words) throws Exception {
        int port = Integer.parseInt(System.getenv("PORT"));
        HttpServer server = HttpServer.create(new InetSocketAddress(port), 0);
        server.createContext("/", exchange -> {
            byte[] text = "by java".getBytes();
            exchange.sendResponseHeaders(200, text.length);
            exchange.getResponseBody().write(text);
            exchange.close();
        });
        server.start();
    }
}
"#;
    // Compiles the one file and runs it, where there is a compiler.
    if let Err(reason) = command("javac") {
        return skip("--share proxy with java", &reason);
    }
    serves("java", &[("Main.java", server)], &["java", "Main.java"], &[], "by java");
}
