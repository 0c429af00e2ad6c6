"""The cases of the Autobahn test suite (its fuzzing client), against an echo at the address given.

The suite was written for Python 2. Its cases come from an `autobahn_cases` package that `.ci/run` translates from the published
suite; what they want of a connection is given them here, on the `autobahn` of today. A string of Python 2 is a string
of bytes: here such a string has a character for each byte, and becomes bytes at the edge.

Prints `[case, behaviour, behaviour of closing, what was seen]` for each, as lines of JSON."""

import json
import sys
import types

from twisted.internet import defer, protocol, reactor, task, endpoints

from autobahn.twisted.websocket import WebSocketClientFactory, WebSocketClientProtocol
from autobahn.websocket.utf8validator import Utf8Validator

# At once: most cases wait for an answer that must not come. Those of category 9 work, and keep others from their time.
AT_ONCE, HEAVY_AT_ONCE = 16, 2


def as_bytes(text):
    return text.encode("latin-1") if isinstance(text, str) else text


def as_text(data):
    return bytes(data).decode("latin-1")


def load_cases():
    """The cases, with what they import made to take strings."""
    import binascii

    import autobahn.websocket.utf8validator as validator

    class Validator(Utf8Validator):
        def validate(self, text):
            return super().validate(as_bytes(text))

    hexadecimal = types.ModuleType("binascii")
    hexadecimal.b2a_hex = lambda text: as_text(binascii.b2a_hex(as_bytes(text)))
    hexadecimal.a2b_hex = lambda text: as_text(binascii.a2b_hex(as_bytes(text)))
    sys.modules["binascii"], validator.Utf8Validator = hexadecimal, Validator
    # Compression, which is not offered; and what needs a Python package that is gone.
    without = types.ModuleType("autobahn_cases.case12_x_x")
    without.Case12_X_X, without.Case13_X_X = [], []
    without.Case12_X_X_CaseSubCategories, without.Case13_X_X_CaseSubCategories = {}, {}
    sys.modules["autobahn_cases.case12_x_x"] = without
    sys.modules["autobahn_cases.case9_9_1"] = types.ModuleType("autobahn_cases.case9_9_1")
    import autobahn_cases

    sys.modules["binascii"], validator.Utf8Validator = binascii, Utf8Validator
    # They compared by `pickle`, in which two equal strings may differ.
    autobahn_cases.Case.compare = lambda self, one, other: one == other
    return autobahn_cases.Cases


class Conversation(WebSocketClientProtocol):
    """A connection on which one case runs."""

    connectionWasOpen = False
    createWirelog = False

    def connectionMade(self):
        self.txFrameStats = {}
        super().connectionMade()

    def enableWirelog(self, _):
        pass

    def logTxFrame(self, header, *_):
        self.txFrameStats[header.opcode] = self.txFrameStats.get(header.opcode, 0) + 1

    def logRxFrame(self, *_):
        pass

    def later(self, delay, act):
        reactor.callLater(delay, lambda: self.state != self.STATE_CLOSED and act())

    def continueLater(self, delay, act, _tag=None):
        self.later(delay, act)

    def killAfter(self, delay):
        self.later(delay, lambda: self._fail_connection())

    def closeAfter(self, delay):
        self.later(delay, self.sendClose)

    def sendFrame(self, opcode, payload=b"", **options):
        super().sendFrame(opcode, as_bytes(payload), **options)

    def sendMessage(self, payload, *arguments, **options):
        super().sendMessage(as_bytes(payload), *arguments, **options)

    def sendMessageFrameData(self, payload, **options):
        return super().sendMessageFrameData(as_bytes(payload), **options)

    def sendCloseFrame(self, code=None, reasonUtf8=None, isReply=False):
        super().sendCloseFrame(code, as_bytes(reasonUtf8), isReply)

    def onOpen(self):
        self.connectionWasOpen = True
        self.case.onOpen()

    def onMessage(self, payload, isBinary):
        self.case.onMessage(as_text(payload), isBinary)

    def onPong(self, payload):
        self.case.onPong(as_text(payload))

    def onClose(self, wasClean, code, reason):
        self.case.onClose(wasClean, code, reason)

    def connectionLost(self, reason=protocol.connectionDone):
        super().connectionLost(reason)
        self.case.onConnectionLost(self.failedByMe)
        self.over.callback(self.case)


def run(case_class, url):
    """Fires with the case, which knows how it went."""
    factory = WebSocketClientFactory(url)
    # A busy machine takes its time.
    factory.setProtocolOptions(failByDrop=False, openHandshakeTimeout=60, closeHandshakeTimeout=60, serverConnectionDropTimeout=20)
    factory.logFrames = True
    over = defer.Deferred()

    def build(_address):
        conversation = Conversation()
        conversation.factory, conversation.over = factory, over
        conversation.case = case_class(conversation)
        return conversation

    factory.buildProtocol = build
    connected = endpoints.clientFromString(reactor, f"tcp:{factory.host}:{factory.port}").connect(factory)
    connected.addErrback(over.errback)
    return over


def tell(case_class, case):
    name = case_class.__name__.removeprefix("Case").replace("_", ".")
    seen = f"{case.result} {case.resultClose} Got {str(case.received)[:200]}"
    print(json.dumps([name, case.behavior, case.behaviorClose, seen]), flush=True)


@defer.inlineCallbacks
def main(_reactor, url):
    cases = load_cases()
    heavy = [case for case in cases if case.__name__.startswith("Case9_")]
    for chosen, at_once in ([case for case in cases if case not in heavy], AT_ONCE), (heavy, HEAVY_AT_ONCE):
        chosen = iter(chosen)

        @defer.inlineCallbacks
        def work(chosen=chosen):
            for case in chosen:
                tell(case, (yield run(case, url)))

        yield defer.gatherResults([work() for _ in range(at_once)], consumeErrors=True)


task.react(main, sys.argv[1:])
