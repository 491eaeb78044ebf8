"""Operations that happen once: units of work, the inbox, the outbox and its relay."""
