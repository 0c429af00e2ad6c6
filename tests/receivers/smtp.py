"""Receives e-mail and prints each message as a line of JSON.

    smtp.py [<directory>]

Mailboxes `refused@…` are answered 550, `busy@…` 451. With a directory, which has `cert.pem` and `key.pem`,
STARTTLS and a login as `tidings` with the password `hush` are required. The first line is the port.
"""

import asyncio
import json
import ssl
import sys
from email import message_from_bytes
from email.policy import SMTP as POLICY

from aiosmtpd.smtp import SMTP, AuthResult


class Receiver:
    async def handle_RCPT(self, server, session, envelope, address, options):
        if address.startswith("refused@"):
            return "550 5.1.1 no such mailbox"
        if address.startswith("busy@"):
            return "451 4.3.0 try again later"
        envelope.rcpt_tos.append(address)
        return "250 OK"

    async def handle_DATA(self, server, session, envelope):
        message = message_from_bytes(envelope.content, policy=POLICY)
        seen = {
            "from": envelope.mail_from,
            "to": envelope.rcpt_tos,
            "headers": [[name.lower(), str(value)] for name, value in message.items()],
            "body": message.get_content(),
            "longest_line": max(map(len, envelope.content.splitlines())),
            "encrypted": session.ssl is not None,
            "login": session.auth_data,
        }
        print(json.dumps(seen), flush=True)
        return "250 taken"


def login(server, session, envelope, mechanism, data):
    if (data.login, data.password) == (b"tidings", b"hush"):
        return AuthResult(success=True, auth_data=data.login.decode())
    return AuthResult(success=False, handled=False)


def protocol():
    if len(sys.argv) < 2:
        return SMTP(Receiver())
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(f"{sys.argv[1]}/cert.pem", f"{sys.argv[1]}/key.pem")
    return SMTP(
        Receiver(), tls_context=context, require_starttls=True, auth_required=True, authenticator=login
    )


async def main():
    server = await asyncio.get_running_loop().create_server(protocol, "127.0.0.1", 0)
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()


asyncio.run(main())
