"""The ClientApp of a hospital: Flower's message kinds in, the desk's answers out."""

from __future__ import annotations

import traceback
from collections.abc import Callable

from flwr.app import Context, Error, Message
from flwr.clientapp import ClientApp

from fl.hospital.desk import RunIdentity, SiteDesk
from fl.hospital.setup import RUN_KEY, SETUP_KEY
from fl.runtime.client import ANSWERS
from fl.runtime.messages import error_reply

SETUP = "query.setup"


def client_app(desk: SiteDesk) -> ClientApp:
    """Return the app that answers a coordinator with this desk; a message of any other kind raises."""
    app = ClientApp()

    @app.query("setup")
    def set_up(message: Message, context: Context) -> Message:
        return Message(desk.set_up(message.content, _run(context)), reply_to=message)

    def answer(message: Message, context: Context) -> Message:
        content = desk.answer(message.metadata.message_type, message.content, _run(context))
        return Message(content, reply_to=message)

    for message_type in ANSWERS:
        _decorator(app, message_type)(answer)
    return app


def answering(desk: SiteDesk, say: Callable[[str], None]) -> Callable[[Message, Context], Message]:
    """Return the app as a function that always replies.

    An answer that fails becomes an Error, which tells the coordinator no more than `error_reply` lets it; say: told
    all of it.
    """
    app = client_app(desk)

    def answer(message: Message, context: Context) -> Message:
        try:
            return app(message, context)
        except Exception as error:  # whatever it is, the coordinator must hear of it and the site go on
            say("".join(traceback.format_exception(error)))
            told = error_reply(message, error).error
            return Message(Error(told.code, desk.without_folders(told.reason or "")), reply_to=message)

    return answer


def _decorator(app: ClientApp, message_type: str) -> Callable[[Callable[[Message, Context], Message]], object]:
    category, _, action = message_type.partition(".")
    register = {"train": app.train, "evaluate": app.evaluate, "query": app.query}[category]
    return register(action) if action else register()


def _run(context: Context) -> RunIdentity:
    config = context.run_config
    return RunIdentity(setup=str(config.get(SETUP_KEY, "")), run=str(config.get(RUN_KEY, "")))
