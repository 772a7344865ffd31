"""Two people who chat by PyPI's websockets: peer.py URL [CERTIFICATE]"""

import asyncio
import json
import ssl
import sys

import websockets

URL, CERTIFICATES = sys.argv[1], sys.argv[2:]
TIME = 30


def options():
    # The library offers compression, which the server does not take.
    trusted = {"ssl": ssl.create_default_context(cafile=CERTIFICATES[0])} if CERTIFICATES else {}
    return {"proxy": None, "open_timeout": TIME, "close_timeout": TIME, **trusted}


class Person:
    def __init__(self, socket):
        self.socket, self.seq, self.pushes = socket, 0, []

    async def ask(self, cut=None, **request):
        self.seq += 1
        text = json.dumps({**request, "seq": self.seq})
        if cut:
            # As a list it is sent in fragments.
            text = [text[at:at + cut] for at in range(0, len(text), cut)]
        await self.socket.send(text)
        while True:
            reply = json.loads(await asyncio.wait_for(self.socket.recv(), TIME))
            if reply.get("seq") == self.seq and reply["msgid"] != 6:
                return reply
            self.pushes.append(reply)

    async def push(self):
        if self.pushes:
            return self.pushes.pop(0)
        return json.loads(await asyncio.wait_for(self.socket.recv(), TIME))


async def enter(socket, name):
    person = Person(socket)
    person.id = (await person.ask(msgid=4, name=name, password="secret"))["id"]
    assert (await person.ask(msgid=1, id=person.id, password="secret"))["errno"] == 0
    return person


async def main():
    async with websockets.connect(URL, **options()) as one, websockets.connect(URL, **options()) as other:
        suffix = URL.rsplit(":", 1)[1]
        zhang, li = await enter(one, "zhang " + suffix), await enter(other, "li " + suffix)
        for sender, recipient in [(zhang, li), (li, zhang)]:
            for text, cut in [("你好", None), ("x" * 60000, None), ("fragments, 碎片 " * 100, 7), ("x" * 60000, 1000)]:
                chat = {"msgid": 6, "id": sender.id, "name": "n", "toid": recipient.id, "msg": text, "time": "now"}
                ack = await sender.ask(cut, **chat)
                assert ack["delivered"] is True, ack
                assert (await recipient.push())["msg"] == text
        await asyncio.wait_for(await one.ping(b"there?"), TIME)
        await other.close(code=4000)
        assert (other.close_code, other.close_reason) == (4000, ""), other.close_code
        # Broken on purpose: the server says why, and closes.
        await one.send(b"binary")
        try:
            await asyncio.wait_for(one.recv(), TIME)
            raise AssertionError("it goes on")
        except websockets.ConnectionClosed as closed:
            assert closed.rcvd.code == 1003, closed


asyncio.run(main())
print("ok")
