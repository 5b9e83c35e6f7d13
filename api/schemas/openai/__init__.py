"""Bodies of OpenAI's requests and answers, as OpenAI's own clients send and read them."""
