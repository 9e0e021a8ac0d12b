"""What client and worker say to each other: messages over a Unix socket, arrays in shared memory.

A message is a msgpack map behind its length; nothing is ever unpickled. The numbers of a batch (actions, observations,
rewards, ends of episodes) do not travel in messages but lie in one piece of memory that both sides map, so that many
environments are stepped by one small message. Values of no fixed size (texts, sequences, graphs) and infos travel in the
message.

Every request has a number, which its answer repeats, and the shared memory holds the number of the request that its contents
answer. So a caller that was interrupted cannot take the answer to an earlier request for that to a later one. An exception
between any two instructions leaves a channel whole: bytes are read and kept, or sent and counted, in one call.

This file is copied beside ``main.py`` into isolated installations: Python 3.7 with only numpy and msgpack must run it.
"""

import mmap
import select
import socket
import struct
import time

import msgpack
import numpy as np

try:
    from space_tree import array_format, leaves  # in an isolated installation, where the files lie beside each other
except ImportError:
    from ldm_hf.env_registry.worker.space_tree import array_format, leaves

MAX_MESSAGE_BYTES = 256 << 20
"""A longer message is taken for garbage."""

FLOATS = b""
"""Key in infos that holds all of their numbers in one array; the keys of infos themselves are texts."""

_LONGEST_REST = 128  # messages to sleep for, after asking in vain again and again

_LENGTH = struct.Struct("<I")
_READ_SIZES = (1 << 18,)  # bytes
_ARRAY = 1  # msgpack extension type: an array as a line of text, its dtype and its lengths, and its bytes
_ALIGNMENT = 64


class ProtocolError(Exception):
    """What came is not a message; the other side is broken or hostile."""


class ChannelClosed(Exception):
    """The other side has closed its end."""


class ChannelTimeout(Exception):
    """No message came in time."""


class Channel:
    """Messages over a connected stream socket."""

    def __init__(self, connection):
        """Take over a connected socket."""
        self.socket = connection
        self.socket.setblocking(False)
        self._received = []  # pieces of messages, as they came
        self._leaving = None  # a message on its way out, and how many bytes of it each call has sent
        self._packer = msgpack.Packer(default=encode_array, use_bin_type=True)  # kept: making one allocates much
        self._rest, self._next_rest = 0, 1
        self._poll = select.poll()
        self._poll.register(connection, select.POLLIN)

    def send(self, message, timeout=None):
        """Send one message.

        Raises:
            ChannelClosed: the other side is gone.
            ChannelTimeout: it does not take the message in time (seconds).
        """
        body = self._packer.pack(message)
        deadline = None if timeout is None else time.monotonic() + timeout
        if self._leaving is not None:  # The sender of the message before was interrupted.
            self._flush(deadline)
        self._leaving = (_LENGTH.pack(len(body)) + body, [])
        self._flush(deadline)

    def receive(self, timeout=None, spin=0.0):
        """Wait for one message.

        Args:
            timeout: seconds to wait; None waits forever.
            spin: seconds to keep asking before sleeping: waking a sleeping process costs more than a short answer takes.
                When that was in vain, the next messages are slept for, twice as many each time: on a busy machine
                asking can take the processor from the very process that should answer.

        Raises:
            ChannelClosed, ChannelTimeout: there is none.
            ProtocolError: what came is not a message.
        """
        start = time.monotonic()
        if self._rest:
            self._rest -= 1
            spin = 0.0
        message = self._take()
        while message is None:
            try:
                self._received.extend(map(self.socket.recv, _READ_SIZES))
            except BlockingIOError:
                waited = time.monotonic() - start
                if waited >= spin:
                    if spin:
                        self._rest = self._next_rest = min(2 * self._next_rest, _LONGEST_REST)
                        spin = 0.0
                    self._sleep(None if timeout is None else timeout - waited)
                continue
            except OSError as error:
                raise ChannelClosed() from error
            if not self._received[-1]:
                raise ChannelClosed()
            message = self._take()
        if spin:
            self._next_rest = 1
        return message

    def close(self):
        """Close this end."""
        self.socket.close()

    def _flush(self, deadline):
        data, sent = self._leaving
        while True:
            rest = memoryview(data)[sum(sent) :] if sent else data
            if not rest:
                break
            try:
                sent.extend(map(self.socket.send, (rest,)))
                if sent[0] == len(data):
                    break
            except BlockingIOError:
                left = None if deadline is None else deadline - time.monotonic()
                writable = select.select([], [self.socket], [], left)[1] if left is None or left > 0 else []
                if not writable:
                    raise ChannelTimeout() from None
            except OSError as error:
                raise ChannelClosed() from error
        self._leaving = None

    def _sleep(self, left):
        if left is not None and left <= 0:
            raise ChannelTimeout()
        self._poll.poll(None if left is None else left * 1000 + 1)

    def _take(self):
        pieces = self._received
        if not pieces:
            return None
        length = _LENGTH.unpack_from(pieces[0])[0] if len(pieces[0]) >= _LENGTH.size else 0
        if length > MAX_MESSAGE_BYTES:
            raise ProtocolError(f"a message of {length} bytes was announced; {MAX_MESSAGE_BYTES} is the limit")
        end = _LENGTH.size + length
        if len(pieces[0]) < end:
            if len(pieces) == 1 or sum(map(len, pieces)) < end:
                return None
            pieces[:] = [b"".join(pieces)]
            return self._take()
        first = pieces[0]
        body = first[_LENGTH.size : end]
        pieces[:1] = [first[end:]] if len(first) > end else []
        try:
            message = msgpack.unpackb(body, ext_hook=decode_array, raw=False)
        except Exception as error:
            raise ProtocolError(f"not a message: {type(error).__name__}: {error}") from error
        if not isinstance(message, dict):
            raise ProtocolError(f"a message is a map, got {type(message).__name__}")
        return message


def send_descriptor(channel, descriptor):
    """Hand an open file to the other side, which must be waiting in ``receive_descriptor``."""
    channel.socket.sendmsg([b"f"], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, struct.pack("i", descriptor))])


def receive_descriptor(channel):
    """Take an open file from the other side."""
    select.select([channel.socket], [], [])
    ancillary = channel.socket.recvmsg(1, socket.CMSG_SPACE(4))[1]
    if not ancillary:
        raise ChannelClosed()
    return struct.unpack("i", ancillary[0][2][:4])[0]


class SharedBatch:
    """The numbers of one step of ``num_envs`` environments, in memory that client and worker share.

    Attributes:
        actions, observations, final_observations: one array a leaf of the space, of shape (num_envs, *shape of the leaf);
            None where a leaf's values have no fixed size.
        rewards: float64 of shape (num_envs,).
        ends: terminated and truncated, uint8 of shape (num_envs, 2), 0 or 1.
        number: int64 of shape (1,): which request the contents answer; 0 while it is being answered.
    """

    def __init__(self, observation_space, action_space, num_envs):
        """Lay the arrays out for spaces given as JSON; ``nbytes`` says how much memory they take."""
        self._formats = []
        self.nbytes = 0
        observation = [array_format(leaf) for _, leaf in leaves(observation_space)]
        action = [array_format(leaf) for _, leaf in leaves(action_space)]
        number, flags = ((), np.dtype(np.float64)), ((2,), np.dtype(np.uint8))
        self._parts = [len(action), len(observation), len(observation)]
        for leaf in action + observation + observation + [number, flags]:
            if leaf is None:
                self._formats.append(None)
            else:
                self._add((num_envs,) + leaf[0], leaf[1])
        self._add((1,), np.dtype(np.int64))

    def attach(self, descriptor):
        """Map the memory of an open file of ``nbytes`` bytes."""
        memory = mmap.mmap(descriptor, self.nbytes)
        arrays = [None if part is None else np.ndarray(part[0], part[1], memory, part[2]) for part in self._formats]
        first, second, third = np.cumsum(self._parts)
        self.actions, self.observations = arrays[:first], arrays[first:second]
        self.final_observations = arrays[second:third]
        self.rewards, self.ends = arrays[third], arrays[third + 1]
        self.number = memoryview(arrays[third + 2])  # of which a number is read in a fraction of the time

    def _add(self, shape, dtype):
        self._formats.append((shape, dtype, self.nbytes))
        size = int(np.prod(shape, dtype=np.int64)) * dtype.itemsize
        self.nbytes += -(-size // _ALIGNMENT) * _ALIGNMENT


def encode_array(value):
    """What msgpack is to make of a value that it does not know: an array of numbers, by extension type 1.

    Raises:
        TypeError: the value is none.
    """
    array = np.asarray(value)
    if array.dtype.kind not in "biufc":
        raise TypeError(f"{type(value).__name__} is not plain data")
    header = "{} {}\n".format(array.dtype.str, " ".join(map(str, array.shape)))
    return msgpack.ExtType(_ARRAY, header.encode() + array.tobytes())


def decode_array(code, data):
    """The array that an extension type stands for.

    Raises:
        ValueError: it stands for none.
    """
    if code != _ARRAY:
        raise ValueError(f"unknown extension type {code}")
    end = data.index(b"\n") + 1
    dtype, *shape = data[:end].decode().split()
    dtype = np.dtype(dtype)
    if dtype.kind not in "biufc":
        raise ValueError(f"an array of {dtype} is not plain data")
    return np.frombuffer(data, dtype, offset=end).reshape([int(length) for length in shape]).copy()
