-- Chooses the variant of a request, and writes the name under which the engine serves it into the body.
--
-- Whatever fails here lets the request through unchanged (Envoy's Lua filter fails open), so nothing is led anywhere
-- but by HEADER, which only this script sets: a filter before it has removed what a client sent, and requests without
-- it meet a route that answers 500. That route's metadata holds the models that clients may ask for, by name.
--
-- No Lua patterns in what reads whole bodies: they are twenty times slower than plain finds.

local bit = require('bit')
local byte, find, match, sub = string.byte, string.find, string.match, string.sub

local HEADER = 'x-lorikeet-cluster'
local PREFIX = 'x-lorikeet-prefix'
local VARIANT = 'x-lorikeet-variant'
local ANSWERED = 'x-envoy-upstream-service-time' -- Envoy sets it where an engine has answered
local COMPLETIONS = {
  ['/v1/chat/completions'] = true,
  ['/v1/completions'] = true,
  ['/v1/embeddings'] = true,
}
local PROMPTS = { messages = true, prompt = true, input = true }
local LONGEST = 1024 -- of a model's name, with its escapes
local BEGINNING = 1024 -- of a prompt: the bytes by which its engine is chosen
local USAGE = '"usage"'
local LONGEST_ID = 128 -- of a request: engines repeat it in each part of an answer
local LONGEST_USAGE = 512 -- of what an engine tells of an answer's tokens
local MOST_TOKENS = 1e8 -- of one request: what is above is no number of tokens
local QUOTE, BACKSLASH, COLON, COMMA = 34, 92, 58, 44
local BRACE, END_BRACE, BRACKET, END_BRACKET = 123, 125, 91, 93
local BROKEN = 'the body is not a JSON object'
local ESCAPED = 'the body has a key with an escape in it at its top level: write keys plainly'
local TWICE = 'the body has more than one "model": leave one'
local MISSING = 'the body has no "model": name one that /v1/models lists'
local NO_STRING = '"model" must be a string: name one that /v1/models lists'

math.randomseed(os.time() + (tonumber(sub(tostring({}), 8), 16) or 0) % 2 ^ 31)

-- Returns the position of the first byte from `at` on that is no white space.
local function skip_space(body, at)
  local code = byte(body, at)
  while code == 32 or code == 10 or code == 13 or code == 9 do
    at = at + 1
    code = byte(body, at)
  end
  return at
end

-- Returns the position of the quote that ends the string whose content begins at `at`.
local function string_end(body, at)
  while true do
    local quote = find(body, '"', at, true)
    if not quote then
      return nil
    end
    local before = quote - 1
    while byte(body, before) == BACKSLASH do
      before = before - 1
    end
    if (quote - before) % 2 == 1 then -- an even number of backslashes
      return quote
    end
    at = quote + 1
  end
end

-- Returns the position behind the value that begins at `at`.
local function value_end(body, at)
  local code = byte(body, at)
  if code == QUOTE then
    local quote = string_end(body, at + 1)
    return quote and quote + 1
  end
  local depth = 0
  while code do
    if code == QUOTE then
      at = string_end(body, at + 1)
      if not at then
        return nil
      end
    elseif code == BRACE or code == BRACKET then
      depth = depth + 1
    elseif code == END_BRACE or code == END_BRACKET then
      if depth == 0 then
        return at -- the end of a number, or of true, false, null
      end
      depth = depth - 1
      if depth == 0 then
        return at + 1
      end
    elseif depth == 0 and (code == COMMA or code == 32 or code == 10 or code == 13 or code == 9) then
      return at
    end
    at = at + 1
    code = byte(body, at)
  end
  return nil
end

-- Returns the positions of the first and the last byte of the top-level model's name, and those of the prompt, if there
-- is one; or nil and what is wrong.
local function find_model(body)
  local at = skip_space(body, 1)
  if byte(body, at) ~= BRACE then
    return nil, BROKEN
  end
  at = skip_space(body, at + 1)
  local first, last, prompt, prompt_end
  while byte(body, at) == QUOTE do
    local quote = string_end(body, at + 1)
    if not quote then
      return nil, BROKEN
    end
    local key = sub(body, at + 1, quote - 1)
    if find(key, '\\', 1, true) then
      return nil, ESCAPED
    end
    at = skip_space(body, quote + 1)
    if byte(body, at) ~= COLON then
      return nil, BROKEN
    end
    at = skip_space(body, at + 1)
    local behind = value_end(body, at)
    if not behind or behind == at then
      return nil, BROKEN
    end
    if key == 'model' then
      if first then
        return nil, TWICE
      end
      if byte(body, at) ~= QUOTE then
        return nil, NO_STRING
      end
      first, last = at + 1, behind - 2
    elseif PROMPTS[key] then
      prompt, prompt_end = at, behind - 1
    end
    at = skip_space(body, behind)
    if byte(body, at) ~= COMMA then
      break
    end
    at = skip_space(body, at + 1)
    if byte(body, at) ~= QUOTE then
      return nil, BROKEN
    end
  end
  if byte(body, at) ~= END_BRACE or skip_space(body, at + 1) <= #body then
    return nil, BROKEN
  end
  if not first then
    return nil, MISSING
  end
  return first, last, prompt, prompt_end
end

local ESCAPES = { ['"'] = '"', ['\\'] = '\\', ['/'] = '/', b = '\b', f = '\f', n = '\n', r = '\r', t = '\t' }

-- Returns what a JSON string of ASCII says; nil for any other, which names no model of ours.
local function unescaped(text)
  local at = find(text, '\\', 1, true)
  if not at then
    return text
  end
  local parts, from = {}, 1
  while at do
    parts[#parts + 1] = sub(text, from, at - 1)
    local letter = sub(text, at + 1, at + 1)
    if letter == 'u' then
      local digits = sub(text, at + 2, at + 5)
      local code = find(digits, '^%x%x%x%x$') and tonumber(digits, 16)
      if not code or code > 127 then
        return nil
      end
      parts[#parts + 1] = string.char(code)
      from = at + 6
    else
      if not ESCAPES[letter] then
        return nil
      end
      parts[#parts + 1] = ESCAPES[letter]
      from = at + 2
    end
    at = find(text, '\\', from, true)
  end
  parts[#parts + 1] = sub(text, from)
  return table.concat(parts)
end

local function multiply(a, b)
  return bit.tobit(bit.band(a, 0xffff) * b + bit.lshift(bit.tobit(bit.rshift(a, 16) * b), 16))
end

-- FNV-1a of 32 bits, stirred as MurmurHash3 ends: neighbouring texts are far from each other.
local function hash(text)
  local found = bit.tobit(2166136261)
  for at = 1, #text do
    found = multiply(bit.bxor(found, byte(text, at)), 16777619)
  end
  found = multiply(bit.bxor(found, bit.rshift(found, 16)), 2246822507)
  found = multiply(bit.bxor(found, bit.rshift(found, 13)), 3266489909)
  return bit.bxor(found, bit.rshift(found, 16))
end

-- Weighted rendezvous hashing (Schindelhauer and Schomaker 2005): who makes one variant heavier moves users to it, and
-- nobody else; two variants trade as few as can be, also if the one falls as the other rises.
local function variant_of(user, model, variants)
  local best, least
  for _, variant in ipairs(variants) do
    if variant.weight > 0 then
      local drawn = (hash(model .. '\0' .. variant.name .. '\0' .. user) + 2147483648.5) / 4294967296
      local score = -math.log(drawn) / variant.weight
      if not least or score < least then
        best, least = variant, score
      end
    end
  end
  return best
end

local function any_variant(variants)
  local total = 0
  for _, variant in ipairs(variants) do
    total = total + variant.weight
  end
  local drawn, found = math.random() * total, nil
  for _, variant in ipairs(variants) do
    if variant.weight > 0 then
      found = variant
      drawn = drawn - variant.weight
      if drawn < 0 then
        break
      end
    end
  end
  return found
end

-- A variant that a client names may have weight 0: so it is tried before it gets a share.
local function choose(model, route, headers)
  local wanted = headers:get(VARIANT)
  if wanted then
    for _, variant in ipairs(route.variants) do
      if variant.name == wanted then
        return variant
      end
    end
  end
  local user = route.sticky and headers:get(route.sticky)
  if user and user ~= '' then
    return variant_of(user, model, route.variants)
  end
  return any_variant(route.variants)
end

local function quoted(text)
  return '"' .. text:gsub('[%c"\\\127-\255]', function(odd)
    return string.format('\\u%04x', byte(odd))
  end) .. '"'
end

-- Answers with an error in OpenAI's shape.
local function refuse(handle, status, code, message)
  local kind = status == 404 and 'not_found_error' or 'invalid_request_error'
  handle:respond(
    { [':status'] = tostring(status), ['content-type'] = 'application/json' },
    '{"error": {"message": ' .. quoted(message) .. ', "type": "' .. kind .. '", "param": null, "code": "' .. code .. '"}}'
  )
end

local function lead(handle)
  local body = handle:body(true)
  local bytes = body:getBytes(0, body:length())
  local first, last, prompt, prompt_end = find_model(bytes)
  if not first then
    return refuse(handle, 400, 'invalid_body', last)
  end
  local model = last - first < LONGEST and unescaped(sub(bytes, first, last))
  local route = model and handle:metadata():get('model ' .. model)
  if not route then
    return refuse(
      handle, 404, 'model_not_found', 'the model ' .. sub(bytes, first, math.min(last, first + 199))
        .. ' does not exist: name one that /v1/models lists'
    )
  end
  local headers = handle:headers()
  local variant = choose(model, route, headers)
  if not variant then -- none that has a share is loaded yet; Envoy writes the answer
    return handle:respond({ [':status'] = '503' }, '')
  end
  body:setBytes(sub(bytes, 1, first - 1) .. variant.served .. sub(bytes, last + 1))
  local said = handle:streamInfo():dynamicMetadata()
  said:set('lorikeet', 'model', model)
  said:set('lorikeet', 'variant', variant.name)
  said:set('lorikeet', 'revision', variant.served)
  if prompt and route.prefix then
    local beginning = sub(bytes, prompt, math.min(prompt_end, prompt + BEGINNING - 1))
    headers:replace(PREFIX, tostring(hash(variant.served .. '\0' .. beginning)))
  end
  headers:replace(HEADER, variant.served)
  handle:clearRouteCache()
end

function envoy_on_request(handle)
  local headers = handle:headers()
  local id = headers:get('x-request-id')
  if id and #id > LONGEST_ID then
    headers:replace('x-request-id', sub(id, 1, LONGEST_ID))
  end
  local method, path = headers:get(':method'), headers:get(':path') or '' -- CONNECT has none
  local query = find(path, '?', 1, true)
  if query then
    path = sub(path, 1, query - 1)
    headers:replace(':path', path) -- no API here has queries; the engine's log would have them
  end
  if path == '/v1/models' and (method == 'GET' or method == 'HEAD') then
    local list = handle:metadata():get('list')
    return handle:respond({ [':status'] = '200', ['content-type'] = 'application/json' }, list)
  end
  if not COMPLETIONS[path] then
    return refuse(handle, 404, 'unknown_path', path .. ' is not served here')
  end
  if method ~= 'POST' then
    return refuse(handle, 405, 'method_not_allowed', path .. ' takes POST')
  end
  local encoding = headers:get('content-encoding')
  if encoding and encoding ~= 'identity' then
    return refuse(handle, 415, 'unsupported_encoding', 'the body is encoded (' .. encoding .. '): send it plainly')
  end
  lead(handle)
end

-- Returns the number of tokens that a part of JSON says under a key.
local function count_in(text, key)
  local _, at = find(text, key, 1, true)
  local digits = at and match(text, '^%s*:%s*(%d+)%s*[,}]', at + 1)
  local count = tonumber(digits)
  return count and count <= MOST_TOKENS and count
end

-- Reads how many tokens an answer has cost, where the engine tells, and lets each part of it go on at once. Of several
-- numbers, as some streams have them, the last ones count. No text of an answer is mistaken for them: inside a JSON
-- string the quotes of "usage" are escaped.
function envoy_on_response(handle)
  local headers = handle:headers()
  local kind = headers:get('content-type') or ''
  if not headers:get(ANSWERED) or headers:get('content-encoding') then
    return
  end
  if not (find(kind, 'json', 1, true) or find(kind, 'event-stream', 1, true)) then
    return
  end
  local usage, before = nil, ''
  for chunk in handle:bodyChunks() do
    local text = before .. chunk:getBytes(0, chunk:length())
    local at = find(text, USAGE, 1, true)
    while at do
      local behind = skip_space(text, at + #USAGE)
      if byte(text, behind) == COLON and byte(text, skip_space(text, behind + 1)) == BRACE then
        usage = sub(text, at, at + LONGEST_USAGE - 1)
      end
      at = find(text, USAGE, at + #USAGE, true)
    end
    before = sub(text, -LONGEST_USAGE) -- of one that begins there, the rest is to come
  end
  local prompt = usage and count_in(usage, '"prompt_tokens"')
  if prompt then
    local said = handle:streamInfo():dynamicMetadata()
    said:set('lorikeet', 'prompt_tokens', prompt)
    said:set('lorikeet', 'completion_tokens', count_in(usage, '"completion_tokens"') or 0) -- an embedding has none
  end
end
