// Uses the npm package `openai` as an app would, and tells what it got.
// Arguments: the API's URL, a key, a model.
import OpenAI from "openai";

const [baseURL, apiKey, model] = process.argv.slice(2);
const client = new OpenAI({ baseURL, apiKey, timeout: 60_000 });
const messages = [{ role: "user", content: "The for statement" }];
const common = { model, messages, temperature: 0, max_tokens: 24 };
const seen = {};

const answer = await client.chat.completions.create(common);
seen.chat = [answer.choices[0].message.content, answer.choices[0].finish_reason];
seen.usage = answer.usage;

const stream = await client.chat.completions.create({
  ...common,
  stream: true,
  stream_options: { include_usage: true },
});
seen.streamed = "";
for await (const chunk of stream) {
  seen.streamed += chunk.choices[0]?.delta?.content ?? "";
  seen.streamedUsage = chunk.usage ?? seen.streamedUsage;
}

const two = await client.chat.completions.create({ ...common, n: 2, temperature: 1, seed: 3 });
seen.choices = two.choices.map((choice) => choice.index);

const likely = await client.chat.completions.create({
  ...common,
  max_tokens: 4,
  logprobs: true,
  top_logprobs: 2,
});
seen.logprobs = likely.choices[0].logprobs.content.map((token) => token.top_logprobs.length);

const completion = await client.completions.create({ model, prompt: "The return", temperature: 0 });
seen.completion = completion.choices[0].text;

const response = await client.responses.create({
  model,
  input: "The for statement",
  temperature: 0,
  max_output_tokens: 24,
});
seen.response = [response.status, response.output_text];

const runner = client.chat.completions.runTools({
  model,
  messages: [{ role: "user", content: "Weather in Ulm?" }],
  max_tokens: 200,
  temperature: 0,
  tool_choice: { type: "function", function: { name: "weather" } },
  tools: [
    {
      type: "function",
      function: {
        name: "weather",
        parse: JSON.parse,
        function: ({ unit }) => {
          seen.called = unit;
          return "rain";
        },
        parameters: {
          type: "object",
          properties: { unit: { type: "string", enum: ["C", "F"] } },
          required: ["unit"],
          additionalProperties: false,
        },
        strict: true,
      },
    },
  ],
});
await runner.done();
seen.messages = runner.messages.map((message) => message.role);

for (const [name, options, body] of [
  ["wrongKey", { apiKey: "sk-wrong" }, common],
  ["wrongModel", {}, { ...common, model: "far/none" }],
  ["wrongField", {}, { ...common, temperature: 9 }],
]) {
  try {
    await client.withOptions({ ...options, maxRetries: 0 }).chat.completions.create(body);
  } catch (error) {
    seen[name] = [error.constructor.name, error.status, error.code, Boolean(error.requestID)];
  }
}

seen.models = [];
for await (const each of client.models.list()) seen.models.push(each.id);
console.log(JSON.stringify(seen));
